"""A ticket is as good as its epoch: bytes of a block that was given away in between never get through."""

from typing import Any

import pytest

from penstock.engine.transfer import PullFailed, PullVerified
from tests.engine.transfer.node import RemoteNode
from tests.engine.transfer.test_pull import connected


def test_a_block_reused_since_its_ticket_is_fenced(start_node: Any, wire: str) -> None:
    owner, reader = connected(start_node, wire)
    tickets = owner.call("write", range(8))
    owner.call("write", [5])
    event = reader.pull(owner, tickets, range(8))
    assert event == PullFailed("a", "peer owner reused block 5 after giving its ticket", tuple(range(8)), ())
    assert reader.call("counters").fenced == 1
    assert isinstance(reader.pull(owner, tickets[:5], range(5)), PullVerified)


def test_without_the_fence_a_reused_block_gets_through(start_node: Any, wire: str) -> None:
    owner, reader = connected(start_node, wire, fence=False)
    tickets = owner.call("write", range(8))
    owner.call("write", [5])
    assert isinstance(reader.pull(owner, tickets, range(8)), PullVerified)
    assert reader.call("holds", tickets, range(8)) == [True] * 5 + [False] + [True] * 2


def race(owner: RemoteNode, reader: RemoteNode, num_pulls: int) -> tuple[int, int]:
    """Pulls blocks that their owner reallocates all the time: (verified, verified with wrong bytes)."""
    owner.call("race", range(8))
    verified = wrong = 0
    for _ in range(num_pulls):
        tickets = owner.call("tickets", range(8))
        if isinstance(reader.pull(owner, tickets, range(8)), PullVerified):
            verified += 1
            wrong += not all(reader.call("holds", tickets, range(8)))
    owner.call("race", [])
    return verified, wrong


@pytest.mark.parametrize("fence", [True, False])
def test_only_the_fence_keeps_out_blocks_rewritten_during_the_read(start_node: Any, wire: str, fence: bool) -> None:
    owner, reader = connected(start_node, wire, fence=fence)
    verified, wrong = race(owner, reader, 100)
    if fence:
        assert wrong == 0
        assert verified > 0
        assert reader.call("counters").fenced == 100 - verified > 0
        assert isinstance(reader.pull(owner, owner.call("tickets", range(8)), range(8)), PullVerified)
    else:
        assert wrong > 10
