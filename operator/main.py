"""The operator's process: stand by, lead, and stop at once when the lead is lost. `penstock operator` runs it."""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from penstock.operator.client import Client, connect
from penstock.operator.config import OperatorConfig
from penstock.operator.controller import Controller
from penstock.operator.executor import Executor
from penstock.operator.fetching import Fetching
from penstock.operator.kinds import OWNED, POD
from penstock.operator.lease import Leadership
from penstock.operator.metrics import Metrics
from penstock.operator.parents import Check, watch_parents
from penstock.operator.predictions import Predictions
from penstock.operator.server import serving
from penstock.operator.store import Store
from penstock.operator.verify import Verifier
from penstock.operator.waiting import Waiting
from penstock.operator.watch import STALLED_S, Watch
from penstock.operator.work_queue import Queue
from penstock.telemetry.logs import set_up_logs

log = logging.getLogger(__name__)

_END_S = 2.0
"""Requests under way may end for so long; the lead is given back only when they have."""
DEEPEST = 40_000
"""Calls within calls. The API server takes JSON of 10,000 levels (a `template` may hold anything); with Python's usual
limit of 1,000 reading one such object would end the operator, for everybody and again after every start."""


def run_operator(config: OperatorConfig) -> int:
    """Until SIGTERM or SIGINT. Exits with status 1, whatever is going on, when the lead is lost."""
    set_up_logs(config)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    sys.setrecursionlimit(DEEPEST)
    asyncio.run(_run(config))
    return 0


async def _run(config: OperatorConfig) -> None:
    metrics = Metrics()
    stop = asyncio.Event()
    _stop_on_signals(stop)
    async with connect(metrics) as client:
        leadership = Leadership(client, config.lease_namespace, config.lease_name, config.holder)
        operation = Operation(config, client, metrics)
        async with serving(config.host, config.port, metrics, operation.trouble):
            if not await _first(leadership.acquire(), stop):
                return
            metrics.leading.set(1)
            keeping = asyncio.create_task(leadership.keep())
            keeping.add_done_callback(_leave_at_once)
            await operation.run(stop)
            keeping.remove_done_callback(_leave_at_once)
            keeping.cancel()
            await leadership.release()
            log.info("the lead is given back")


class Operation:
    """All that a leader does."""

    def __init__(self, config: OperatorConfig, client: Client, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._queue = Queue(metrics)
        self._store = Store(self._queue.add)
        executor = Executor(client, self._store, metrics)
        self._controller = Controller(config, self._store, self._queue, executor, metrics)
        self._watches = [
            Watch(client, kind, config.namespace, self._store, lambda kind: metrics.relists.labels(kind).inc())
            for kind in (*OWNED, POD)
        ]
        self._check = Check(client, config, self._store)
        self._verifier = Verifier(config, self._store)
        self._predictions = Predictions(self._store)
        self._fetching = Fetching(client, self._store)
        self._waiting = Waiting(client, self._store)
        self._leads = False

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. Nothing is looked at before all kinds are listed: else children would be made anew.

        When it returns nothing is written any more. kopf is not waited for: it lingers for 5 s.
        """
        self._leads = True
        tasks = [asyncio.create_task(watch.run(), name=f"watch {watch.kind.plural}") for watch in self._watches]
        tasks.append(asyncio.create_task(self._work(), name="work"))
        stopping = asyncio.create_task(stop.wait(), name="stop")
        kopf = watch_parents(self._config, self._store, lambda: _stop_on_signals(stop))
        parents = asyncio.create_task(kopf, name="kopf")
        try:
            ended, _ = await asyncio.wait([*tasks, parents, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in (*tasks, parents, stopping):
                task.cancel()
            await asyncio.wait(tasks, timeout=_END_S)
        if any(not task.done() for task in tasks):
            raise TimeoutError(f"work did not end within {_END_S:.0f} s")

    async def _work(self) -> None:
        for watch in self._watches:
            await watch.synced.wait()
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._controller.run())
            group.create_task(self._check.run())
            group.create_task(self._measure())
            group.create_task(self._fetching.run())
            group.create_task(self._waiting.run())
            if self._config.verify_transfers:
                group.create_task(self._verifier.run())
                group.create_task(self._predictions.run())

    def trouble(self) -> str | None:
        """Why this process should be restarted."""
        if not self._leads:
            return None
        for watch in self._watches:
            if watch.age_s > STALLED_S:
                return f"the watch of {watch.kind.plural} has said nothing for {watch.age_s:.0f} s"
        if self._check.age_s > STALLED_S:
            return f"kopf has missed changes of LLMDeployments for {self._check.age_s:.0f} s"
        return None

    async def _measure(self) -> None:
        while True:
            self._metrics.deployments.set(len(self._store.deployments))
            num_objects = self._store.num_objects()
            for watch in self._watches:
                self._metrics.watch_age.labels(watch.kind.kind).set(watch.age_s)
                if watch.kind is not POD:
                    self._metrics.objects.labels(watch.kind.kind).set(num_objects[watch.kind.kind])
            await asyncio.sleep(5)


def _stop_on_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _first(wanted: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Waits for `wanted`; False when `stop` came first."""
    task, stopping = asyncio.create_task(wanted), asyncio.create_task(stop.wait())
    await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
    came = task.done()
    task.cancel()
    stopping.cancel()
    if came:
        task.result()
    return came


def _leave_at_once(keeping: "asyncio.Task[None]") -> None:
    """Another operator may act from now on, so not even cleaning up is allowed."""
    if keeping.cancelled():
        return
    log.error("leaving: %s", keeping.exception())
    logging.shutdown()
    os._exit(1)
