"""Starts all parts of local mode, restarts the ones that die or hang, and leaves nothing behind."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from functools import partial

from penstock.errors import ConfigError, PenstockError
from penstock.local.child import Child, End
from penstock.local.config import LocalConfig
from penstock.local.forks import Forks
from penstock.local.liveness import kill_when_stuck
from penstock.local.logs import Logs
from penstock.local.model import config_modules
from penstock.local.parts import Part, WorkerPart, router_parts, worker_parts
from penstock.local.report import Report, Stopwatch

STOP_S = 2.0
"""What still lives so long after SIGTERM is killed."""
STABLE_S = 10.0
"""A part that lived so long is restarted at once; one that dies sooner waits, twice as long each time."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0


class Cluster:
    """The running parts."""

    def __init__(self, config: LocalConfig, report: Report) -> None:
        self._report = report
        self._logs = Logs(config.log_dir, report)
        self._forks = Forks(config.engine.threads, config_modules(config.engine.model))
        self.workers: list[WorkerPart] = worker_parts(config, self._forks, self._logs)
        self.routers = router_parts(config, self.workers, self._logs)
        self._children: dict[str, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._ready: dict[str, asyncio.Event] = {}

    @property
    def url(self) -> str:
        """Where clients find the API: the first router's."""
        return self.routers[0].url

    async def start(self) -> None:
        """Returns when all parts are ready. Raises ConfigError or PenstockError when one ends before it was."""
        parts: list[Part] = [*self.workers, *self.routers]
        for part in parts:
            self._ready[part.name] = asyncio.Event()
            self._report.part(part.name, "starting")
            self._keepers.append(asyncio.create_task(self._keep(part), name=part.name))
        all_ready = asyncio.create_task(self._all_ready())
        await asyncio.wait((all_ready, *self._keepers), return_when=asyncio.FIRST_COMPLETED)
        if not all_ready.done():
            all_ready.cancel()
            failed = next(keeper for keeper in self._keepers if keeper.done())
            self._report.mute(spare=failed.get_name())
            failed.result()

    async def stop(self) -> None:
        """Stops every process, within STOP_S and a little."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        children = list(self._children.values())
        for child in children:
            child.signal(signal.SIGTERM)
        if children:
            await asyncio.wait([child.ended for child in children], timeout=STOP_S)
        for child in children:
            child.signal(signal.SIGKILL)
        await asyncio.gather(*(child.wait_end() for child in children))
        await self._forks.stop()
        self._logs.close()

    async def _all_ready(self) -> None:
        for event in self._ready.values():
            await event.wait()

    async def _keep(self, part: Part) -> None:
        """Runs `part` for ever. Raises ConfigError or PenstockError when it ends before it was ever ready."""
        ready, pause_s = self._ready[part.name], 0.0
        while True:
            watch = Stopwatch()
            end = await self._run_once(part, watch)
            if not ready.is_set():
                raise ConfigError(end.refusal) if end.refusal else PenstockError(f"{part.name} {end.how} at start")
            pause_s = 0.0 if watch.seconds > STABLE_S else min(LONGEST_PAUSE_S, 2 * pause_s or FIRST_PAUSE_S)
            when = f"in {pause_s:g} s" if pause_s else "now"
            self._report.part(part.name, f"{end.refusal or end.how}; starting it again {when}")
            await asyncio.sleep(pause_s)

    async def _run_once(self, part: Part, watch: Stopwatch) -> End:
        """One process of `part`, from its start to its end."""
        try:
            child = self._children[part.name] = await part.launch()
        except PenstockError as error:
            return End(f"could not be started: {error}")
        if await child.outcome():
            again = "again " if self._ready[part.name].is_set() else ""
            remark, *notes = child.ready.result()
            self._report.part(part.name, f"ready {again}in {watch}  {part.url}  {remark}".rstrip())
            for note in notes:
                self._report.note(note)
            self._ready[part.name].set()
            stuck = partial(self._report.part, part.name, "frozen or stuck for long: killed")
            child.watch(kill_when_stuck(part.url, child, stuck))
        return await child.wait_end()


@contextlib.asynccontextmanager
async def running(config: LocalConfig, report: Report) -> AsyncIterator[Cluster]:
    """A cluster whose parts are all ready; it is stopped on leaving. Raises ConfigError or PenstockError."""
    cluster = Cluster(config, report)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()
