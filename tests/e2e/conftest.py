"""What the end-to-end tests share: one tiny model, and deployments that live as long as a test or a module."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

pytest.register_assert_rewrite("tests.e2e.deployment", "tests.e2e.faults")

from tests.e2e.deployment import WIRES, Deployment  # noqa: E402
from tests.e2e.model import write_model  # noqa: E402


class Deploy(Protocol):
    """Starts a deployment; the keyword arguments are those of Deployment."""

    def __call__(self, **options: Any) -> Deployment: ...


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("e2e") / "model")


@pytest.fixture
def deploy(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploy]:
    """Deployments that end with the test: idle ones, too, take time from the processor."""
    with _deployments(model, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def deploy_for_module(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploy]:
    """Deployments that end with the module: for its fixtures."""
    with _deployments(model, tmp_path_factory) as start:
        yield start


@contextmanager
def _deployments(model: Path, folders: pytest.TempPathFactory) -> Iterator[Deploy]:
    with ExitStack() as stack:

        def start(**options: Any) -> Deployment:
            served = options.pop("model", model)
            return stack.enter_context(Deployment(served, folders.mktemp("logs"), **options))

        yield start


def need_wire(wire: str) -> None:
    """Skips the test where the wire's transport is not installed."""
    if WIRES[wire][0] == "nixl":
        pytest.importorskip("nixl_cu12", reason="nixl is not installed: pip install nixl-cu12")
