"""Peers die, freeze and come back: a pull fails in time, and late bytes never reach a block that somebody else has."""

import json
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from penstock.engine.transfer import PullFailed, PullVerified, QuarantineReleased
from penstock.protocol import BlockTicket
from tests.engine.transfer.conftest import TIMEOUT_S
from tests.engine.transfer.node import Pair, RemoteNode, connected, wait_until_heard


def frozen(pair: Pair, num_blocks: int = 8) -> tuple[RemoteNode, RemoteNode, list[BlockTicket]]:
    """Owner, reader and tickets; the connection stands, and the owner is frozen since."""
    owner, reader = pair
    tickets = owner.call("write", range(num_blocks))
    reader.pull(owner, tickets[:1], [100])
    owner.freeze()
    return owner, reader, tickets


def test_a_killed_peer_fails_its_pulls_at_once(start_node: Any, wire: str) -> None:
    owner, reader = connected(start_node, wire)
    tickets = owner.call("write", range(4))
    assert isinstance(reader.pull(owner, tickets, range(4)), PullVerified)
    owner.kill()
    started = time.monotonic()
    event = reader.pull(owner, tickets, range(4))
    assert isinstance(event, PullFailed)
    assert event.quarantined == ()
    assert time.monotonic() - started < 1.0


def test_a_peer_killed_while_it_is_read_fails_the_pull_and_frees_the_blocks(start_node: Any, remote_wire: str) -> None:
    owner, reader, tickets = frozen(connected(start_node, remote_wire))
    reader.submit(owner, tickets, range(8), "a")
    assert reader.call("event", 0.1) is None
    owner.kill()
    event = reader.call("event", 1.0)
    assert isinstance(event, PullFailed)
    assert event.quarantined == ()


def test_a_frozen_peer_times_out_and_its_late_bytes_stay_in_quarantine(remote_pair: Pair) -> None:
    owner, reader, tickets = frozen(remote_pair)
    started = time.monotonic()
    event = reader.pull(owner, tickets, range(8))
    assert TIMEOUT_S <= time.monotonic() - started < TIMEOUT_S + 0.5
    assert event == PullFailed("a", "peer owner delivered nothing for 0.5 s", tuple(range(8)), tuple(range(8)))
    assert reader.call("counters").quarantined_blocks == 8
    # Waiting for a frozen peer costs little, and nothing lands meanwhile.
    assert reader.call("cpu_share", 0.5) < 0.1
    reader.call("fill", range(8, 20), 7)
    before = reader.call("contents", range(8, 20))
    assert reader.call("event", 0.0) is None

    owner.thaw()
    assert reader.call("event", 5.0) == QuarantineReleased(tuple(range(8)))
    assert all(reader.call("holds", tickets, range(8))), "the late bytes did land"
    assert reader.call("contents", range(8, 20)) == before
    assert reader.call("counters").quarantined_blocks == 0
    assert isinstance(reader.pull(owner, tickets, range(8)), PullVerified)


def test_a_peer_that_timed_out_is_not_read_from_until_late_bytes_of_it_land(remote_pair: Pair) -> None:
    owner, reader, tickets = frozen(remote_pair)
    assert reader.pull(owner, tickets, range(8)).quarantined == tuple(range(8))
    for _ in range(3):
        reader.call("add_peer", owner.peer)
        started = time.monotonic()
        reason = "peer owner let a pull time out and has delivered nothing since"
        assert reader.pull(owner, tickets, range(8, 16)) == PullFailed("a", reason, tuple(range(8, 16)), ())
        assert time.monotonic() - started < TIMEOUT_S / 2
    assert reader.call("counters").quarantined_blocks == 8, "no refused pull has added any"
    owner.thaw()
    assert reader.call("event", 5.0) == QuarantineReleased(tuple(range(8)))
    assert isinstance(reader.pull(owner, tickets, range(8)), PullVerified)


def test_all_pulls_of_a_peer_fail_with_the_first_that_times_out(remote_pair: Pair) -> None:
    owner, reader, tickets = frozen(remote_pair)
    started = time.monotonic()
    reader.submit(owner, tickets[:4], range(4), "early")
    assert reader.call("event", 0.6 * TIMEOUT_S) is None
    reader.submit(owner, tickets[4:], range(4, 8), "late")
    early, late = (reader.call("event", 5.0) for _ in range(2))
    assert time.monotonic() - started < 1.5 * TIMEOUT_S
    assert (early.request_id, early.quarantined) == ("early", tuple(range(4)))
    assert (late.request_id, late.quarantined) == ("late", tuple(range(4, 8)))


def test_a_peer_all_of_whose_late_reads_were_lost_is_probed_when_it_is_met(start_node: Any) -> None:
    owner, reader, tickets = frozen(connected(start_node, "tcp", timeout_s=TIMEOUT_S))
    reader.pull(owner, tickets, range(8))
    reader.call("lose_connections")
    assert isinstance(reader.call("event", 5.0), QuarantineReleased)
    reader.call("add_peer", owner.peer)  # a frozen process's kernel still accepts connections
    assert isinstance(reader.pull(owner, tickets, range(8)), PullFailed)
    assert reader.call("counters").quarantined_blocks == 0
    owner.thaw()
    wait_until_heard(reader, owner)
    assert isinstance(reader.pull(owner, tickets, range(8)), PullVerified)


def test_meeting_a_frozen_peer_again_does_not_prolong_its_pulls(remote_pair: Pair) -> None:
    """New requests go on introducing a peer that answers calls but no reads."""
    owner, reader, tickets = frozen(remote_pair)
    started = time.monotonic()
    reader.submit(owner, tickets, range(8), "a")
    while (event := reader.call("event", 0.1)) is None:
        assert time.monotonic() - started < TIMEOUT_S + 0.5
        reader.call("add_peer", owner.peer)
    assert isinstance(event, PullFailed)


def test_without_quarantine_late_bytes_overwrite_a_reused_block(start_node: Any, remote_wire: str) -> None:
    owner, reader, tickets = frozen(connected(start_node, remote_wire, timeout_s=TIMEOUT_S, quarantine=False))
    event = reader.pull(owner, tickets, range(8))
    assert event.quarantined == ()
    reader.call("fill", range(8), 7)  # the engine gave them to another request
    owner.thaw()
    deadline = time.monotonic() + 5
    while not all(reader.call("holds", tickets, range(8))):
        assert time.monotonic() < deadline, "nothing landed late: this test proves nothing"


@pytest.mark.parametrize("wire", ["cma"], scope="session", indirect=True)
def test_over_cma_a_frozen_peer_can_still_be_read(pair: Pair) -> None:
    owner, reader = pair
    tickets = owner.call("write", range(8))
    reader.pull(owner, tickets, range(8))
    owner.freeze()
    assert isinstance(reader.pull(owner, tickets, range(8, 16)), PullVerified)
    assert all(reader.call("holds", tickets, range(8, 16)))


def test_an_aborted_pull_fails_at_once_and_keeps_its_blocks_until_the_bytes_landed(remote_pair: Pair) -> None:
    owner, reader, tickets = frozen(remote_pair)
    reader.submit(owner, tickets[:4], range(4), "a")
    reader.submit(owner, tickets[4:6], range(4, 6), "a")
    reader.submit(owner, tickets[6:], range(6, 8), "b")
    assert reader.call("event", 0.1) is None
    reader.call("abort", "a")
    events = [reader.call("event", 0.5) for _ in range(2)]
    assert events == [
        PullFailed("a", "aborted", tuple(range(4)), tuple(range(4))),
        PullFailed("a", "aborted", (4, 5), (4, 5)),
    ]
    owner.thaw()
    events = [reader.call("event", 5.0) for _ in range(3)]
    assert PullVerified("b", (6, 7)) in events
    assert QuarantineReleased(tuple(range(4))) in events
    assert QuarantineReleased((4, 5)) in events
    assert all(reader.call("holds", tickets, range(8)))


def test_a_frozen_peer_does_not_hold_up_the_others(remote_pair: Pair, remote_wire: str, start_node: Any) -> None:
    owner, reader = remote_pair
    other = start_node(remote_wire, "other")
    reader.call("add_peer", other.peer)
    tickets, others = owner.call("write", range(8)), other.call("write", range(8))
    reader.pull(owner, tickets, range(8))
    reader.pull(other, others, range(8))
    owner.freeze()
    reader.submit(owner, tickets, range(8), "frozen")
    started = time.monotonic()
    for _ in range(20):
        assert isinstance(reader.pull(other, others, range(10, 18)), PullVerified)
    assert (time.monotonic() - started) / 20 < 0.05


def test_a_successor_is_readable_and_never_mistaken_for_its_predecessor(start_node: Any, wire: str) -> None:
    owner, reader = connected(start_node, wire)
    tickets = owner.call("write", range(4))
    reader.pull(owner, tickets, range(4))
    owner.kill()
    successor = start_node(wire, "successor")
    reader.call("add_peer", successor.peer)
    news = successor.call("write", range(4))
    assert isinstance(reader.pull(successor, news, range(4, 8)), PullVerified)
    assert isinstance(reader.pull(owner, tickets, range(4)), PullFailed)
    assert isinstance(reader.pull(successor, news, range(4, 8)), PullVerified)
    assert all(reader.call("holds", news, range(4, 8)))


def test_a_lost_connection_to_a_living_peer_is_made_anew(start_node: Any) -> None:
    owner, reader = connected(start_node, "tcp")
    tickets = owner.call("write", range(4))
    reader.pull(owner, tickets, range(4))
    owner.call("drop_readers")
    assert isinstance(reader.pull(owner, tickets, range(4)), PullFailed)
    reader.call("add_peer", owner.peer)
    assert isinstance(reader.pull(owner, tickets, range(4)), PullVerified)


def test_a_reader_that_dies_in_a_read_leaves_its_owner_serving_others(start_node: Any, wire: str) -> None:
    lose_reader(start_node, wire, freeze=False)


@pytest.mark.parametrize("wire", ["cma", "tcp"], scope="session", indirect=True)
def test_a_reader_that_dies_while_its_owner_is_frozen_leaves_it_serving_others(start_node: Any, wire: str) -> None:
    lose_reader(start_node, wire, freeze=True)


def lose_reader(start_node: Any, wire: str, *, freeze: bool) -> None:
    owner, reader = connected(start_node, wire)
    tickets = owner.call("write", range(200))
    reader.pull(owner, tickets, range(200))
    if freeze:
        owner.freeze()
    for i in range(10):
        reader.submit(owner, tickets, range(200), f"{i}")
    reader.call("event", 0.1)
    reader.kill()
    owner.thaw()
    successor = start_node(wire, "successor")
    successor.call("add_peer", owner.peer)
    assert isinstance(successor.pull(owner, tickets, range(200)), PullVerified)


def test_ucx_over_tcp_aborts_an_owner_whose_reader_died_while_it_was_frozen(start_node: Any) -> None:
    """Not a promise but a fact to plan for: the engine process ends with SIGABRT, and its worker restarts it."""
    owner, reader, tickets = frozen(connected(start_node, "ucx-tcp"), num_blocks=200)
    reader.submit(owner, tickets, range(200), "a")
    assert reader.call("event", 0.1) is None
    reader.kill()
    owner.thaw()
    owner.process.join(10)
    assert owner.process.exitcode == -signal.SIGABRT


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tc") is None or shutil.which("unshare") is None, reason="needs unshare and tc")
def test_a_silent_partition_fails_pulls_in_time_ends_the_quarantine_refuses_more_and_heals() -> None:
    namespace = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*namespace, "true"], check=False).returncode:
        pytest.skip("this kernel allows no network namespaces here")
    command = [*namespace, sys.executable, "-m", "tests.engine.transfer.partition", "ucx-tcp", "tcp"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=90).stdout
    for events in json.loads(output.splitlines()[-1]).values():
        names, (failed_s, released_s, refused_s, _) = zip(*events, strict=True)
        assert names == ("PullFailed", "QuarantineReleased", "PullFailed", "PullVerified")
        assert 1.0 <= failed_s < 2.0
        assert released_s < 20
        assert refused_s < 0.5


def test_a_worker_closes_although_a_read_is_in_flight(start_node: Any, remote_wire: str) -> None:
    owner, reader, tickets = frozen(connected(start_node, remote_wire), num_blocks=200)
    reader.submit(owner, tickets, range(200), "a")
    assert reader.call("event", 0.1) is None
    assert reader.close() == 0
