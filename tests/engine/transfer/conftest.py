"""Nodes for tests of the transfer."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.transfer.node import Pair, connected, nodes, wait_until_heard

TIMEOUT_S = 0.5


@pytest.fixture
def start_node() -> Iterator[Any]:
    """Starts nodes for one test, which may kill them."""
    with nodes() as start:
        yield start


@pytest.fixture(scope="session", params=["cma", "ucx-tcp", "tcp"])
def wire(request: pytest.FixtureRequest) -> str:
    """Every way in which bytes can travel here."""
    return str(request.param)


@pytest.fixture(scope="session", params=["ucx-tcp", "tcp"])
def remote_wire(request: pytest.FixtureRequest) -> str:
    """The ways that need the owner's help: over cma a frozen process can still be read."""
    return str(request.param)


@pytest.fixture(scope="session")
def _shared_pairs() -> Iterator[Any]:
    """One pair per wire for all tests that leave both alive, since starting one takes a second."""
    pairs: dict[str, Pair] = {}
    with nodes() as start:

        def pair(wire: str) -> Pair:
            if wire not in pairs:
                pairs[wire] = connected(start, wire, timeout_s=TIMEOUT_S)
            return pairs[wire]

        yield pair


def _lend(pair: Pair) -> Iterator[Pair]:
    pair.reader.call("drain")
    yield pair
    pair.owner.thaw()
    wait_until_heard(pair.reader, pair.owner)


@pytest.fixture
def pair(wire: str, _shared_pairs: Any) -> Iterator[Pair]:
    yield from _lend(_shared_pairs(wire))


@pytest.fixture
def remote_pair(remote_wire: str, _shared_pairs: Any) -> Iterator[Pair]:
    yield from _lend(_shared_pairs(remote_wire))
