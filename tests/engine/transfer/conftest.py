"""Nodes for tests of the transfer."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.transfer.node import nodes


@pytest.fixture
def start_node() -> Iterator[Any]:
    with nodes() as start:
        yield start


@pytest.fixture(params=["cma", "ucx-tcp", "tcp"])
def wire(request: pytest.FixtureRequest) -> str:
    """Every way in which bytes can travel here."""
    return str(request.param)


@pytest.fixture(params=["ucx-tcp", "tcp"])
def remote_wire(request: pytest.FixtureRequest) -> str:
    """The ways that need the owner's help: over cma a frozen process can still be read."""
    return str(request.param)
