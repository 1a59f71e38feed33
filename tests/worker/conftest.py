"""Workers around the fake engine, shared by tests that leave them unharmed."""

from collections.abc import Iterator

import pytest

from tests.worker.processes import WorkerProcess, running_worker


@pytest.fixture(scope="session")
def decode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    flags = ("--max-body-bytes", "256KiB", "--max-frames-behind", "64")
    with running_worker(tmp_path_factory.mktemp("decode"), "decode", *flags) as worker:
        yield worker


@pytest.fixture(scope="session")
def prefill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with running_worker(tmp_path_factory.mktemp("prefill"), "prefill", "--lease-s", "0.3") as worker:
        yield worker


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A prefill worker with memory for a short context only."""
    with running_worker(tmp_path_factory.mktemp("small"), "prefill", "--max-context-tokens", "200") as worker:
        yield worker
