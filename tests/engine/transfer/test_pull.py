"""Blocks arrive as they were ticketed, or the pull says why not."""

from typing import Any

import numpy as np
import pytest

from penstock.engine.transfer import PullFailed, PullVerified
from penstock.protocol import BlockTicket
from tests.engine.transfer.node import BLOCK_BYTES, NUM_BLOCKS, Pair, connected


@pytest.mark.parametrize("count", [1, 8, 200])
@pytest.mark.parametrize("order", ["scattered", "neighbours"])
def test_pulled_blocks_are_byte_equal_and_others_untouched(pair: Pair, count: int, order: str) -> None:
    owner, reader = pair
    draw = np.random.default_rng(count).permutation if order == "scattered" else np.arange
    remote, local = draw(NUM_BLOCKS)[:count].tolist(), draw(NUM_BLOCKS)[-count:].tolist()
    others = sorted(set(range(NUM_BLOCKS)) - set(local))
    reader.call("fill", others, 7)
    tickets = owner.call("write", remote)
    assert reader.pull(owner, tickets, local) == PullVerified("a", tuple(local))
    contents = reader.call("contents", local)
    assert contents == owner.call("contents", remote)
    assert len(set(contents)) == count, "every block has bytes of its own"
    assert set(reader.call("contents", others)) == {(7).to_bytes(8, "little") * (BLOCK_BYTES // 8)}


def test_a_pull_larger_than_one_read_arrives_whole(start_node: Any, wire: str) -> None:
    size = {"num_blocks": 20, "block_bytes": 1 << 20}
    owner, reader = start_node(wire, "owner", **size), start_node(wire, "reader", **size)
    reader.call("add_peer", owner.peer)
    tickets = owner.call("write", range(20))
    assert isinstance(reader.pull(owner, tickets, range(19, -1, -1)), PullVerified)
    assert all(reader.call("holds", tickets, range(19, -1, -1)))


def test_a_pull_of_no_blocks_is_verified(pair: Pair) -> None:
    assert pair.reader.pull(pair.owner, [], []) == PullVerified("a", ())


def test_a_hundred_pulls_in_flight_at_once_all_arrive(pair: Pair) -> None:
    owner, reader = pair
    tickets = owner.call("write", np.random.default_rng(0).permutation(NUM_BLOCKS)[:100].tolist())
    owner.freeze()  # so that all are in flight together (except over cma)
    for i in range(100):
        reader.submit(owner, tickets[i : i + 1], [i], f"request-{i}")
    owner.thaw()
    events = [reader.call("event", 5.0) for _ in range(100)]
    assert sorted(event.local_blocks for event in events) == [(i,) for i in range(100)]
    assert all(isinstance(event, PullVerified) for event in events)
    assert all(reader.call("holds", tickets, range(100)))


def test_a_pull_that_cannot_be_read_fails_with_the_reason(pair: Pair, wire: str, start_node: Any) -> None:
    owner, reader = pair
    stranger = start_node(wire, "stranger", block_bytes=4096)
    tickets = owner.call("write", [0])
    reader.call("fill", [1], 7)
    before = reader.call("contents", [1])

    event = reader.pull(stranger, tickets, [1])
    assert event == PullFailed("a", "peer stranger is unknown", (1,), ())
    event = reader.pull(owner, [*tickets, BlockTicket(NUM_BLOCKS, 1, b"")], [1, 2])
    assert event == PullFailed("a", "peer owner has 256 blocks; a ticket names block 256", (1, 2), ())
    event = reader.pull(owner, tickets, [NUM_BLOCKS])
    assert event == PullFailed("a", "this worker has blocks 0 to 255, not 256 to 256", (NUM_BLOCKS,), ())
    reader.call("add_peer", stranger.peer)
    event = reader.pull(stranger, tickets, [1])
    assert event == PullFailed("a", "peer stranger has blocks of 4096 bytes, this worker of 24576", (1,), ())
    assert reader.call("contents", [1]) == before


def test_peers_with_different_transports_refuse_each_other_by_name(start_node: Any) -> None:
    owner, reader = start_node("tcp", "owner"), start_node("cma", "reader")
    reader.call("add_peer", owner.peer)
    event = reader.pull(owner, owner.call("write", [0]), [1])
    assert event.reason == "peer owner offers tcp, this worker uses nixl"


def test_counters_tell_what_was_moved(pair: Pair) -> None:
    owner, reader = pair
    before = reader.call("counters")
    reader.pull(owner, owner.call("write", range(5)), range(5))
    after = reader.call("counters")
    assert (after.blocks - before.blocks, after.bytes - before.bytes) == (5, 5 * BLOCK_BYTES)
    assert 0 < after.seconds - before.seconds < 5


def test_an_idle_worker_uses_next_to_no_cpu_though_it_serves_at_once(pair: Pair) -> None:
    owner, reader = pair
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
