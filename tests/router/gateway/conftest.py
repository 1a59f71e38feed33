"""A gateway in front of fake workers: a picker, and beside each decode worker a router, at the same port of hosts of
their own (127.0.0.2, 127.0.0.3)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from penstock.listen import free_port
from penstock.router.config import RouterConfig
from tests.router.conftest import StartRouter
from tests.router.fake_worker import FakeWorker
from tests.router.gateway.envoy import Envoy
from tests.router.serving import LoopThread, RunningRouter, running_router, wait_until


class Site:
    """The parts of one deployment behind a gateway."""

    def __init__(self, picker: RunningRouter, beside: dict[str, RunningRouter], envoy: Envoy) -> None:
        self.picker = picker
        self.beside = beside
        """By endpoint."""
        self.envoy = envoy


@pytest.fixture
def start_at(worker_loop: LoopThread, outputs: list[list[int]]) -> Iterator[Callable[[str], FakeWorker]]:
    """Starts a fake worker at an address of this machine."""
    with ExitStack() as stack:

        def start(host: str) -> FakeWorker:
            worker = FakeWorker(outputs)
            worker_loop.run(worker.start(host=host))
            stack.callback(lambda: worker_loop.run(worker.stop()))
            return worker

        yield start


@pytest.fixture
def decode(start_at: Callable[[str], FakeWorker]) -> tuple[FakeWorker, FakeWorker]:
    return start_at("127.0.0.2"), start_at("127.0.0.3")


@pytest.fixture
def start_site(
    model_folder: Path, decode: tuple[FakeWorker, ...], start_router: StartRouter
) -> Iterator[Callable[..., Site]]:
    """`settings` are the picker's; those in `sidecar` the others'."""
    with ExitStack() as stack:

        def start(prefill: tuple[FakeWorker, ...] = (), sidecar: dict[str, Any] | None = None, **settings: Any) -> Site:
            endpoint_port, ext_proc_port = free_port(), free_port()
            lists = {"decode": ",".join(one.url for one in decode), "prefill": ",".join(one.url for one in prefill)}
            beside = {}
            for worker in decode:
                host = worker.url.removeprefix("http://").partition(":")[0]
                config = RouterConfig(
                    model=str(model_folder),
                    host=host,
                    port=endpoint_port,
                    beside=worker.url,
                    poll_s=0.05,
                    **lists,
                    **(sidecar or {}),
                )
                beside[f"{host}:{endpoint_port}"] = stack.enter_context(running_router(config))
            picker = start_router(
                decode, prefill, ext_proc_port=ext_proc_port, endpoint_port=endpoint_port, poll_s=0.05, **settings
            )
            for one in beside.values():
                wait_until(lambda one=one: one.services.ready, "readiness of an endpoint")  # type: ignore[misc]
            return Site(picker, beside, stack.enter_context(Envoy(ext_proc_port)))

        yield start


@pytest.fixture
def site(start_site: Callable[..., Site]) -> Site:
    return start_site()
