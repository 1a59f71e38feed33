"""A whole deployment on loopback: prefill workers, decode workers and routers, each a process of its own."""

import dataclasses
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from penstock.engine.config import EngineConfig
from penstock.listen import free_port
from penstock.router.config import RouterConfig
from penstock.worker.config import Role, WorkerConfig
from penstock.worker.lifetime import EngineMain
from tests.e2e.processes import START_S, Running, Surroundings, eventually, start_router, start_worker

QUIET_S = 15.0
"""How long blocks, leases and streams may linger once the last client has gone and all processes run again."""

WIRES: dict[str, tuple[str, dict[str, str]]] = {
    "cma": ("nixl", {"UCX_NET_DEVICES": "lo"}),
    "ucx-tcp": ("nixl", {"UCX_NET_DEVICES": "lo", "UCX_TLS": "tcp,self"}),
    "tcp": ("tcp", {}),
}
"""How KV moves: the transport's name and the environment it needs."""

ROUTER: dict[str, Any] = {"policy": "least-work"}
"""Most of these tests are about hand-overs, which the default policy avoids while decode workers are idle."""

DEFAULT_POLICY: dict[str, Any] = {"policy": RouterConfig.policy}
"""For those about what a router does whose user chose nothing."""

ENGINE: dict[str, Any] = {
    "block_size": 8,
    "num_blocks": 512,
    "max_step_tokens": 16,
    "threads": 1,
    "secret": "of this test",
    "poison": True,
}
"""Small blocks and steps, so that a prompt of 80 tokens has several tickets; freed blocks are NaN."""


class Worker:
    """One worker, always at the same URL, through any number of lives."""

    def __init__(
        self, name: str, config: WorkerConfig, surroundings: Surroundings, engine_main: EngineMain | None
    ) -> None:
        self.name = name
        self.config = config
        self.surroundings = surroundings
        self.url = f"http://{config.host}:{config.port}"
        self._engine_main = engine_main
        self.process = self._start()

    @property
    def pids(self) -> tuple[int, ...]:
        return self.process.pids

    def metric(self, name: str) -> float:
        """The value of a metric, summed over its labels."""
        return metrics_of(self.url)[name]

    def restart(self) -> None:
        """Starts it anew if it has died. `Deployment.wait_ready` waits for it."""
        if not self.process.alive:
            self.process.wait_gone()
            self.process = self._start()
            self.process.wait_ready()

    def _start(self) -> Running:
        return start_worker(self.config, self.surroundings, self._engine_main)

    def left_over(self) -> dict[str, float]:
        """What an idle worker must not have."""
        metrics = metrics_of(self.url)
        names = (
            "penstock_open_streams",
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "penstock_leased_requests",
            "penstock_kv_blocks_quarantined",
        )
        left = {name: metrics[name] for name in names if metrics[name]}
        if held := metrics["penstock_kv_blocks"] - metrics["penstock_kv_blocks_free"]:
            left["held blocks"] = held
        return left


class Router:
    """One router, always at the same URL, through any number of lives."""

    def __init__(self, name: str, config: RouterConfig, surroundings: Surroundings) -> None:
        self.name = name
        self.config = config
        self.surroundings = surroundings
        self.url = f"http://127.0.0.1:{config.port}"
        self.process = start_router(config, surroundings)

    def restart(self) -> None:
        """Starts it anew if it has died. `Deployment.wait_ready` waits for it."""
        if not self.process.alive:
            self.process.wait_gone()
            self.process = start_router(self.config, self.surroundings)
            self.process.wait_ready()


class Deployment:
    """Use as a context manager; all processes run and all workers are ready inside."""

    def __init__(
        self,
        model: Path,
        logs: Path,
        *,
        prefill: int = 1,
        decode: int = 1,
        routers: int = 1,
        wire: str = "tcp",
        engine: Mapping[str, Any] | None = None,
        worker: Mapping[str, Any] | None = None,
        router: Mapping[str, Any] | None = None,
        engine_main: EngineMain | None = None,
        reached_at: Callable[[str, str], str] = lambda _name, url: url,
        place: Callable[[str], Mapping[str, Any]] = lambda _name: {},
    ) -> None:
        """`engine`, `worker` and `router` are fields that differ from ENGINE and the defaults; `engine_main` replaces
        the workers' engine.

        `reached_at(name, url)` is the address under which the router (and through it every other worker) reaches a
        worker: a proxy's, for example. `place(name)` may give a worker's `host`, the address it listens on,
        `transfer_host`, at which its blocks are read, `namespace` and `environment`.
        """
        transport, environment = WIRES[wire]
        settings = EngineConfig(**{"model": str(model), "transport": transport, **ENGINE, **(engine or {})})
        self.workers: list[Worker] = []
        self.routers: list[Router] = []
        roles: list[tuple[Role, int]] = [("prefill", prefill), ("decode", decode)]
        try:
            for role, count in roles:
                for index in range(count):
                    name = f"{role}-{index}"
                    special: dict[str, Any] = {"host": "127.0.0.1", "namespace": "", "environment": {}, **place(name)}
                    here = dataclasses.replace(settings, transfer_host=special.get("transfer_host", special["host"]))
                    around = Surroundings(
                        logs / f"{name}.log", {**environment, **special["environment"]}, special["namespace"]
                    )
                    address = {"host": special["host"], "port": free_port()}
                    config = WorkerConfig(role=role, engine=here, **address, **(worker or {}))
                    self.workers.append(Worker(name, config, around, engine_main))
            self.prefill, self.decode = self.workers[:prefill], self.workers[prefill:]
            at = {worker: reached_at(worker.name, worker.url) for worker in self.workers}
            lists: dict[str, Any] = {
                "prefill": ",".join(at[worker] for worker in self.prefill),
                "decode": ",".join(at[worker] for worker in self.decode),
            }
            for index in range(routers):
                name = f"router-{index}"
                front_door = RouterConfig(model=str(model), port=free_port(), **lists, **{**ROUTER, **(router or {})})
                self.routers.append(Router(name, front_door, Surroundings(logs / f"{name}.log", {})))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Deployment":
        try:
            for worker in self.workers:
                worker.process.wait_ready()
            for router in self.routers:
                router.process.wait_ready()
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills everything, frozen or not."""
        for each in self.members:
            each.process.kill()

    @property
    def members(self) -> "list[Worker | Router]":
        """Whatever may die."""
        return [*self.workers, *self.routers]

    @property
    def url(self) -> str:
        """Of the first router."""
        return self.routers[0].url

    @property
    def router(self) -> Running:
        """The first one's process."""
        return self.routers[0].process

    def all_ready(self) -> bool:
        """Whether every router has found every worker ready."""
        try:
            ready = [metrics_of(router.url)["penstock_router_worker_ready"] for router in self.routers]
        except OSError:
            return False
        return set(ready) == {len(self.workers)}

    def wait_ready(self) -> None:
        """Until `all_ready`."""
        eventually(self.all_ready, "readiness of all workers", START_S, pause_s=0.02)

    def assert_quiet(self, timeout_s: float = QUIET_S) -> None:
        """No live worker has a running, waiting or leased request, an open stream, or a block that is not free."""
        deadline = time.monotonic() + timeout_s
        while left := self.left_over():
            assert time.monotonic() < deadline, f"left over: {left}"
            time.sleep(0.02)

    def left_over(self) -> dict[str, dict[str, float]]:
        """Per process, what is not at rest."""
        left = {worker.name: worker.left_over() for worker in self.workers if worker.process.alive}
        names = ("penstock_router_running_requests", "penstock_router_worker_streams")
        for router in self.routers:
            metrics = metrics_of(router.url)
            left[router.url] = {name: metrics[name] for name in names if metrics[name]}
        return {name: what for name, what in left.items() if what}


def metrics_of(url: str) -> dict[str, float]:
    """Every sample of /metrics, summed over its labels. Raises OSError when there is no answer."""
    sums: dict[str, float] = {}
    for sample in _samples(url):
        sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def prediction_outcomes(url: str) -> dict[str, float]:
    """Requests by how prediction and truth of cached tokens compare, as the router at `url` counts them."""
    name = "penstock_router_predicted_requests_total"
    return {sample.labels["outcome"]: sample.value for sample in _samples(url) if sample.name == name}


def _samples(url: str) -> Iterator[Sample]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5.0) as response:
        text = response.read().decode()
    for family in text_string_to_metric_families(text):
        yield from family.samples
