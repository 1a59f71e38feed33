"""A ticket is as good as its epoch: bytes of a block that was given away in between never get through."""

from typing import Any

from penstock.engine.transfer import PullFailed, PullVerified
from tests.engine.transfer.node import Pair, connected


def test_a_block_reused_since_its_ticket_is_fenced(pair: Pair) -> None:
    owner, reader = pair
    fenced = reader.call("counters").fenced
    tickets = owner.call("write", range(8))
    owner.call("write", [5])
    event = reader.pull(owner, tickets, range(8))
    assert event == PullFailed("a", "peer owner reused block 5 after giving its ticket", tuple(range(8)), ())
    assert reader.call("counters").fenced == fenced + 1
    assert isinstance(reader.pull(owner, tickets[:5], range(5)), PullVerified)


def test_without_the_fence_a_reused_block_gets_through(start_node: Any, wire: str) -> None:
    owner, reader = connected(start_node, wire, fence=False)
    tickets = owner.call("write", range(8))
    owner.call("write", [5])
    assert isinstance(reader.pull(owner, tickets, range(8)), PullVerified)
    assert reader.call("holds", tickets, range(8)) == [True] * 5 + [False] + [True] * 2


def race(pair: Pair, num_pulls: int) -> tuple[int, int]:
    """Pulls blocks that their owner reallocates all the time: (verified, verified with wrong bytes)."""
    owner, reader = pair
    owner.call("race", range(8))
    verified = wrong = 0
    for _ in range(num_pulls):
        tickets = owner.call("tickets", range(8))
        if isinstance(reader.pull(owner, tickets, range(8)), PullVerified):
            verified += 1
            wrong += not all(reader.call("holds", tickets, range(8)))
    owner.call("race", [])
    return verified, wrong


def test_blocks_rewritten_during_the_read_never_get_through(pair: Pair) -> None:
    fenced = pair.reader.call("counters").fenced
    verified, wrong = race(pair, 100)
    assert wrong == 0
    assert verified > 0
    assert pair.reader.call("counters").fenced - fenced == 100 - verified > 0
    assert isinstance(pair.reader.pull(pair.owner, pair.owner.call("tickets", range(8)), range(8)), PullVerified)


def test_without_the_fence_blocks_rewritten_during_the_read_get_through(start_node: Any, wire: str) -> None:
    verified, wrong = race(connected(start_node, wire, fence=False), 100)
    assert verified == 100
    assert wrong > 10
