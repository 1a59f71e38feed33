"""A tiny model, and one cluster for tests that leave it whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.processes import Up, running_up
from tests.local.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def up(tiny_model: Path) -> Iterator[Up]:
    with running_up(str(tiny_model), "--port", "0", "--kv-bytes", "8MiB", "--policy", "least-work") as running:
        running.wait_ready()
        yield running
