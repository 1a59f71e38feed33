"""The workers the router knows: which are ready, and what the router has in flight on each.

Members come from the configuration (`add`) or from a watcher (`set_members`). Whether a member is ready is learned
by polling its /ready, and at once by `mark_lost` when a stream on it fails; a lost worker is looked at immediately and
then at every poll, so it is chosen again within two polls of its return.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
import msgspec

from penstock.hop import Readiness
from penstock.protocol import SILENT_S
from penstock.router.policy import EXPECTED_OUTPUT_TOKENS, ClusterSnapshot, Placement, Role, WorkerState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who should be a worker: only a prefill and a decode worker of one revision are paired."""

    url: str
    role: Role
    revision: str = ""


@dataclass(slots=True, eq=False)
class Worker:
    """One member. `arrivals` counts how often it became ready: a new number is a new chance."""

    url: str
    role: Role
    revision: str = ""
    ready: bool = False
    arrivals: int = 0
    generation: str = ""
    said: Readiness | None = None
    """What it last said on /ready."""
    prefill_tokens: int = 0
    output_tokens: int = 0
    streams: int = 0
    losses: int = 0
    told: bool | None = None
    """What the log last said: whether it is ready."""
    look: asyncio.Event = field(default_factory=asyncio.Event)
    watcher: asyncio.Task[None] | None = None


class Cluster:
    """The set of workers and their state."""

    def __init__(self, session: aiohttp.ClientSession, poll_s: float) -> None:
        self._session = session
        self._poll_s = poll_s
        self._workers: dict[str, Worker] = {}
        self._changed = asyncio.Event()

    @property
    def workers(self) -> tuple[Worker, ...]:
        return tuple(self._workers.values())

    def add(self, url: str, role: Role, revision: str = "") -> None:
        """A member that is not ready until it says so. Known members keep their state."""
        if url not in self._workers:
            worker = self._workers[url] = Worker(url, role, revision)
            worker.watcher = asyncio.create_task(self._watch(worker), name=f"watch {url}")

    def remove(self, url: str) -> None:
        """No longer chosen; streams on it go on."""
        worker = self._workers.pop(url, None)
        if worker is not None and worker.watcher is not None:
            worker.watcher.cancel()

    def set_members(self, members: Collection[Member]) -> None:
        """From now on exactly these. An address that was another revision's or role's is a new worker."""
        for worker in self.workers:
            if Member(worker.url, worker.role, worker.revision) not in members:
                self.remove(worker.url)
        for member in members:
            self.add(member.url, member.role, member.revision)

    async def close(self) -> None:
        watchers = [worker.watcher for worker in self.workers if worker.watcher is not None]
        for url in list(self._workers):
            self.remove(url)
        await asyncio.gather(*watchers, return_exceptions=True)

    def mark_lost(self, url: str) -> None:
        """Not chosen until it answers ready again. It is asked at once: a busy worker is back in milliseconds."""
        worker = self._workers.get(url)
        if worker is not None:
            worker.losses += 1
            worker.look.set()
            self._set_ready(worker, False)

    def arrivals(self, url: str) -> int:
        worker = self._workers.get(url)
        return worker.arrivals if worker is not None else 0

    def met(self, url: str, generation: str) -> bool:
        """Notes the process that answers at `url`; True when it is another one than before."""
        worker = self._workers.get(url)
        if worker is None or worker.generation == generation:
            return False
        is_new = worker.generation != ""
        worker.generation = generation
        return is_new

    def has_ready(self, role: Role) -> bool:
        return any(worker.ready and worker.role == role for worker in self.workers)

    def smallest(self, limit: Callable[[Readiness], int | None]) -> int | None:
        """The smallest `limit` of the ready decode workers, else of the known ones; None when unknown."""
        decode = [worker for worker in self.workers if worker.role == "decode"]
        ready = [worker for worker in decode if worker.ready]
        limits = [limit(worker.said) for worker in ready or decode if worker.said is not None]
        return min((each for each in limits if each is not None), default=None)

    def snapshot(self) -> ClusterSnapshot:
        return ClusterSnapshot(prefill=self._loads("prefill"), decode=self._loads("decode"))

    async def changed(self) -> None:
        """Returns when a worker has become ready or unready."""
        await self._changed.wait()

    def reserve(self, placement: Placement, uncached_tokens: int, output_tokens: int) -> "Reservation":
        """Counts a request's work on the workers it was placed on, until it is released."""
        decode = self._workers.get(placement.decode)
        prefill = self._workers.get(placement.prefill or placement.decode)
        return Reservation(decode, prefill, uncached_tokens, min(output_tokens, EXPECTED_OUTPUT_TOKENS))

    def _loads(self, role: Role) -> tuple[WorkerState, ...]:
        return tuple(
            WorkerState(
                worker.url,
                worker.prefill_tokens,
                worker.output_tokens,
                worker.revision,
                role,
                streams=worker.streams,
                max_streams=(worker.said.max_samples if worker.said else None) or 0,
            )
            for worker in self._workers.values()
            if worker.ready and worker.role == role
        )

    async def _watch(self, worker: Worker) -> None:
        while True:
            worker.look.clear()
            losses = worker.losses
            answer = await self._ask(worker.url)
            if losses == worker.losses:  # else it was lost while being asked: the answer is older than the loss
                if isinstance(answer, Readiness):
                    worker.said = answer
                self._tell(worker, answer)
                self._set_ready(worker, isinstance(answer, Readiness))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await worker.look.wait()

    async def _ask(self, url: str) -> Readiness | str:
        """What a ready worker says of itself; of another, why it is not ready."""
        try:
            async with asyncio.timeout(SILENT_S), self._session.get(f"{url}/ready") as response:
                if response.status != 200:
                    return f"it answers HTTP {response.status}"
                return msgspec.json.decode(await response.read(), type=Readiness)
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            return str(error) or f"no answer within {SILENT_S:g} s"

    def _tell(self, worker: Worker, answer: Readiness | str) -> None:
        """One line for each change that a look finds. (A worker back at once after a loss is the placer's to tell.)"""
        ready = isinstance(answer, Readiness)
        if worker.told is not ready:
            worker.told = ready
            why = "" if ready else f": {answer}"
            log.info("%s worker %s is %sready%s", worker.role, worker.url, "" if ready else "not ", why)

    def _set_ready(self, worker: Worker, ready: bool) -> None:
        if worker.ready != ready:
            worker.ready = ready
            worker.arrivals += ready
            self._changed.set()
            self._changed = asyncio.Event()


class Reservation:
    """The work one request was counted with; what is done or given up is released."""

    def __init__(self, decode: Worker | None, prefill: Worker | None, prefill_tokens: int, output_tokens: int) -> None:
        self._decode, self._prefill = decode, prefill
        self._prefill_tokens, self._output_tokens = prefill_tokens, output_tokens
        if prefill is not None:
            prefill.prefill_tokens += prefill_tokens
        if decode is not None:
            decode.output_tokens += output_tokens
            decode.streams += 1

    def produced(self, num_tokens: int) -> None:
        """Output tokens arrived, so the prompt is computed too."""
        if self._prefill_tokens and self._prefill is not None:
            self._prefill.prefill_tokens -= self._prefill_tokens
        self._prefill_tokens = 0
        done = min(num_tokens, self._output_tokens)
        self._output_tokens -= done
        if self._decode is not None:
            self._decode.output_tokens -= done

    def release(self) -> None:
        """The request has ended there, in whatever way. Call once."""
        self.produced(self._output_tokens)
        if self._decode is not None:
            self._decode.streams -= 1
