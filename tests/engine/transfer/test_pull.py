"""Blocks arrive as they were ticketed, or the pull says why not."""

from typing import Any

import numpy as np
import pytest

from penstock.engine.transfer import PullFailed, PullVerified
from penstock.protocol import BlockTicket
from tests.engine.transfer.node import NUM_BLOCKS, RemoteNode


def connected(start_node: Any, wire: str, **reader_options: Any) -> tuple[RemoteNode, RemoteNode]:
    """An owner, and a reader that has met it."""
    owner, reader = start_node(wire, "owner"), start_node(wire, "reader", **reader_options)
    reader.call("add_peer", owner.peer)
    return owner, reader


@pytest.mark.parametrize("count", [1, 8, 200])
@pytest.mark.parametrize("order", ["scattered", "neighbours"])
def test_pulled_blocks_are_byte_equal_and_others_untouched(start_node: Any, wire: str, count: int, order: str) -> None:
    owner, reader = connected(start_node, wire)
    draw = np.random.default_rng(count).permutation if order == "scattered" else np.arange
    remote, local = draw(NUM_BLOCKS)[:count].tolist(), draw(NUM_BLOCKS)[-count:].tolist()
    tickets = owner.call("write", remote)
    event = reader.pull(owner, tickets, local)
    assert event == PullVerified("a", tuple(local))
    assert reader.call("contents", local) == owner.call("contents", remote)
    assert len(set(reader.call("contents", local))) == count
    others = sorted(set(range(NUM_BLOCKS)) - set(local))
    assert not any(any(content) for content in reader.call("contents", others[:20]))


def test_a_pull_larger_than_one_read_arrives_whole(start_node: Any, wire: str) -> None:
    size = {"num_blocks": 40, "block_bytes": 1 << 20}
    owner, reader = start_node(wire, "owner", **size), start_node(wire, "reader", **size)
    reader.call("add_peer", owner.peer)
    tickets = owner.call("write", range(40))
    assert isinstance(reader.pull(owner, tickets, range(39, -1, -1)), PullVerified)
    assert all(reader.call("holds", tickets, range(39, -1, -1)))


def test_a_pull_of_no_blocks_is_verified(start_node: Any, wire: str) -> None:
    owner, reader = connected(start_node, wire)
    assert reader.pull(owner, [], []) == PullVerified("a", ())


def test_a_hundred_pulls_in_flight_at_once_all_arrive(start_node: Any, wire: str) -> None:
    owners = [start_node(wire, f"owner-{i}") for i in range(2)]
    reader = start_node(wire, "reader")
    for owner in owners:
        reader.call("add_peer", owner.peer)
    remote = np.random.default_rng(0).permutation(NUM_BLOCKS)[:100].tolist()
    tickets = [owner.call("write", remote) for owner in owners]
    owners[0].freeze()  # so that they really wait for each other: over tcp none can be answered yet
    for i in range(100):
        reader.submit(owners[i % 2], tickets[i % 2][i : i + 1], [i], f"request-{i}")
    owners[0].thaw()
    events = [reader.call("event", 5.0) for _ in range(100)]
    assert sorted(event.local_blocks for event in events) == [(i,) for i in range(100)]
    assert all(isinstance(event, PullVerified) for event in events)
    assert all(reader.call("holds", [tickets[i % 2][i] for i in range(100)], range(100)))


def test_a_pull_that_cannot_be_read_fails_with_the_reason(start_node: Any, wire: str) -> None:
    owner, reader = connected(start_node, wire)
    stranger = start_node(wire, "stranger", block_bytes=4096)
    tickets = owner.call("write", [0])
    beyond = BlockTicket(NUM_BLOCKS, 1, b"")

    event = reader.pull(stranger, tickets, [1])
    assert event == PullFailed("a", "peer stranger is unknown", (1,), ())
    event = reader.pull(owner, [*tickets, beyond], [1, 2])
    assert event == PullFailed("a", "peer owner has 256 blocks; a ticket names block 256", (1, 2), ())
    reader.call("add_peer", stranger.peer)
    event = reader.pull(stranger, tickets, [1])
    assert event == PullFailed("a", "peer stranger has blocks of 4096 bytes, this worker of 24576", (1,), ())
    assert not any(reader.call("contents", [1])[0])


def test_peers_with_different_transports_refuse_each_other_by_name(start_node: Any) -> None:
    owner, reader = start_node("tcp", "owner"), start_node("cma", "reader")
    reader.call("add_peer", owner.peer)
    event = reader.pull(owner, owner.call("write", [0]), [1])
    assert event.reason == "peer owner offers tcp, this worker uses nixl"


def test_counters_tell_what_was_moved(start_node: Any, wire: str) -> None:
    owner, reader = connected(start_node, wire)
    reader.pull(owner, owner.call("write", range(5)), range(5))
    counters = reader.call("counters")
    assert (counters.blocks, counters.bytes, counters.failed) == (5, 5 * 24_576, 0)
    assert 0 < counters.seconds < 5


def test_an_idle_worker_uses_next_to_no_cpu_though_it_serves_at_once(start_node: Any, wire: str) -> None:
    owner, reader = connected(start_node, wire)
    reader.pull(owner, owner.call("write", [0]), [0])
    # 20 ms and more: UCX's descriptors were found, so that nothing has to poll.
    assert owner.call("idle_s") >= 0.02
    assert owner.call("cpu_share", 1.0) < 0.03


def test_closing_leaves_no_thread_and_no_descriptor(start_node: Any, wire: str) -> None:
    owner, reader = connected(start_node, wire)
    assert isinstance(reader.pull(owner, owner.call("write", [0]), [0]), PullVerified)
    # The first life loads libraries that stay; the second must add nothing.
    first = reader.call("relive", wire, owner.peer)
    second = reader.call("relive", wire, owner.peer)
    assert second == first
    assert second[0] == 1
