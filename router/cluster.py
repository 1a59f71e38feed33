"""The workers the router knows and which of them are ready; what is in flight on each is in its books.

Members come from the configuration (`add`) or from a watcher (`set_members`). Whether a member is ready is learned
by polling its /ready, and at once by `mark_lost` when a stream on it fails; a lost worker is looked at immediately and
then at every poll, so it is chosen again within two polls of its return.
"""

import asyncio
import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
import msgspec

from penstock.address import authority
from penstock.errors import reason_of
from penstock.hop import NO_JSON, Readiness
from penstock.protocol import SILENT_S, Events
from penstock.router.placement.books import About, Booking, Books
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, Role
from penstock.silence import HeardWithin

log = logging.getLogger(__name__)

_ANOTHER_MODEL = "it serves another model than this router: tokenizer or architecture differ"


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who should be a worker: only a prefill and a decode worker of one revision are paired."""

    url: str
    role: Role
    revision: str = ""
    node: str = ""
    """Its machine; when empty, the host of its URL is taken for one."""


@dataclass(slots=True, eq=False)
class Worker:
    """One member."""

    member: Member
    ready: bool = False
    arrival: int = 0
    """A new number whenever it becomes ready, which no worker had before: a new chance."""
    said: Readiness | None = None
    """What it last said on /ready."""
    why: str = "it has not been asked yet"
    """It is not ready; "" when it is."""
    losses: int = 0
    told: bool | None = None
    """What the log last said: whether it is ready."""
    look: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.member.url

    @property
    def role(self) -> Role:
        return self.member.role

    @property
    def weights(self) -> str:
        """Fingerprint; empty while unknown."""
        return self.said.weights if self.said is not None else ""

    def holds(self, num_tokens: int) -> bool:
        """Whether a prompt and its answer of so many tokens fit there, as far as is known. A prefill worker that is too
        small refuses, and is done without."""
        most = self.said.max_context_tokens if self.said is not None else None
        return self.role == "prefill" or most is None or num_tokens <= most


class Cluster:
    """The set of workers and their state."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        poll_s: float,
        follow: Callable[[Worker, "Cluster"], Awaitable[None]] | None = None,
        *,
        model: str = "",
        endpoint_port: int | None = None,
    ) -> None:
        """`follow` runs for each worker as long as it is a member, and is cancelled then.

        `model` is the served model's fingerprint: a worker that has another one is not used. With an `endpoint_port` a
        decode worker is ready when the router beside it is, too.
        """
        self._model = model
        self._endpoint_port = endpoint_port
        self._session = session
        self._poll_s = poll_s
        self._follow = follow
        self._workers: dict[str, Worker] = {}
        self._changed = asyncio.Event()
        self._now = asyncio.get_running_loop().time
        self.books = Books()
        self._liars: set[str] = set()
        self._arrivals = itertools.count(1)

    @property
    def workers(self) -> tuple[Worker, ...]:
        return tuple(self._workers.values())

    def add(self, member: Member) -> None:
        """A member that is not ready until it says so. Known members keep their state."""
        if member.url not in self._workers:
            worker = self._workers[member.url] = Worker(member)
            node = member.node or urlsplit(member.url).hostname or ""
            self.books.open(member.url, member.role, member.revision, node)
            worker.tasks.append(asyncio.create_task(self._watch(worker), name=f"watch {member.url}"))
            if self._follow is not None:
                worker.tasks.append(asyncio.ensure_future(self._follow(worker, self)))

    def remove(self, url: str) -> None:
        """No longer chosen; streams on it go on."""
        worker = self._workers.pop(url, None)
        self.books.close(url)
        self._liars.discard(url)
        for task in worker.tasks if worker is not None else ():
            task.cancel()

    def set_members(self, members: Collection[Member]) -> None:
        """From now on exactly these. An address that was another revision's or role's is a new worker."""
        for worker in self.workers:
            if worker.member not in members:
                self.remove(worker.url)
        for member in members:
            self.add(member)

    async def close(self) -> None:
        tasks = [task for worker in self.workers for task in worker.tasks]
        for url in list(self._workers):
            self.remove(url)
        await asyncio.gather(*tasks, return_exceptions=True)

    def mark_lost(self, url: str) -> None:
        """Not chosen until it answers ready again. It is asked at once: a busy worker is back in milliseconds."""
        worker = self._workers.get(url)
        if worker is not None:
            worker.losses += 1
            worker.look.set()
            self._set_ready(worker, "a call to it has failed")

    def arrival(self, url: str) -> int:
        """The number of a worker's life, or of its last; 0 when it was never ready."""
        worker = self._workers.get(url)
        return worker.arrival if worker is not None else 0

    def revision(self, url: str) -> str:
        worker = self._workers.get(url)
        return worker.member.revision if worker is not None else ""

    def has_ready(self, role: Role) -> bool:
        return any(worker.ready and worker.role == role for worker in self.workers)

    def is_ready(self, url: str) -> bool:
        worker = self._workers.get(url)
        return worker is not None and worker.ready

    def smallest(self, limit: Callable[[Readiness], int | None]) -> int | None:
        """The smallest `limit` of the ready decode workers, else of the known ones; None when unknown."""
        decode = [worker for worker in self.workers if worker.role == "decode"]
        ready = [worker for worker in decode if worker.ready]
        limits = [limit(worker.said) for worker in ready or decode if worker.said is not None]
        return min((each for each in limits if each is not None), default=None)

    def weights(self, url: str) -> str:
        worker = self._workers.get(url)
        return worker.weights if worker is not None else ""

    def snapshot(
        self, weights: str = "", *, num_tokens: int = 0, waiting: int = 0, priority: float = math.inf
    ) -> ClusterSnapshot:
        """What a policy sees: the ready workers, or those of them that have no other `weights` and hold a prompt and
        answer of so many tokens, while so many requests wait in the router; prompts that go behind one of this
        `priority` do not count."""
        fit = (
            each.url
            for each in self.workers
            if each.ready
            and (not num_tokens or each.holds(num_tokens))
            and (not weights or each.weights in ("", weights))
        )
        return self.books.snapshot(fit, self._now(), waiting=waiting, priority=priority)

    def oddity(self, worker: Worker) -> str:
        """What is wrong with a worker, else "".

        It is "model" where it serves another one than the router, which does not use it; "weights" where it is ready
        and another of its revision has others: answers then differ by who is asked.
        """
        if worker.why == _ANOTHER_MODEL:
            return "model"
        return "weights" if worker.ready and self._has_other_weights(worker) else ""

    def change(self) -> asyncio.Event:
        """Set when, from now on, a worker has become ready or unready."""
        return self._changed

    def reserve(self, placement: Placement, request: PlacementRequest) -> "Reservation":
        """Counts a request's work on the workers it was placed on, until it is released."""
        return Reservation(self.books.book(placement, request, self._now()), self._now)

    def observed(self, url: str, events: Events) -> None:
        """A frame of a worker's `/events`, for its load and its step timings."""
        if self.books.observed(url, events, self._now()) and url not in self._liars:
            self._liars.add(url)
            log.warning(
                "%s sends step timings that cannot be true, or are nothing like those of its kind; "
                "they are left out, and counted in /metrics",
                url,
            )

    def unheard(self, url: str) -> None:
        """No frames of a worker's `/events` come now: what it said last is no longer its load."""
        self.books.unheard(url)

    async def _watch(self, worker: Worker) -> None:
        while True:
            worker.look.clear()
            losses = worker.losses
            answer = await self._ask(worker.url)
            if isinstance(answer, Readiness) and self._endpoint_port is not None and worker.role == "decode":
                answer = await self._ask_beside(authority(worker.url, self._endpoint_port)) or answer
            if losses == worker.losses:  # else it was lost while being asked: the answer is older than the loss
                if isinstance(answer, Readiness):
                    worker.said = answer
                    self._describe(worker.url, answer)
                self._tell(worker, answer)
                self._set_ready(worker, "" if isinstance(answer, Readiness) else answer)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await worker.look.wait()

    def _describe(self, url: str, said: Readiness) -> None:
        usual = About()
        block_tokens, step_tokens = said.block_size or usual.block_tokens, said.step_tokens or usual.step_tokens
        self.books.describe(url, About(said.kind, block_tokens, step_tokens, said.layout, said.max_samples or 0))

    async def _ask(self, url: str) -> Readiness | str:
        """What a ready worker says of itself; of another, why it is not ready."""
        try:
            async with HeardWithin(SILENT_S), self._session.get(f"{url}/ready") as response:
                if response.status != 200:
                    return f"it answers HTTP {response.status}"
                said = msgspec.json.decode(await response.read(), type=Readiness)
        except (aiohttp.ClientError, OSError, *NO_JSON) as error:
            return str(error) or f"no answer within {SILENT_S:g} s"
        if self._model and said.model and said.model != self._model:
            return _ANOTHER_MODEL
        return said

    async def _ask_beside(self, endpoint: str) -> str:
        """Why the router beside a worker takes no requests; "" if it does."""
        try:
            async with HeardWithin(SILENT_S), self._session.get(f"http://{endpoint}/ready") as response:
                return "" if response.status == 200 else f"the router at {endpoint} answers HTTP {response.status}"
        except (aiohttp.ClientError, OSError) as error:
            return f"the router at {endpoint}: {reason_of(error)}"

    def _tell(self, worker: Worker, answer: Readiness | str) -> None:
        """One line for each change that a look finds. (A worker back at once after a loss is the placer's to tell.)"""
        ready = isinstance(answer, Readiness)
        if worker.told is not ready:
            worker.told = ready
            why = "" if ready else f": {answer}"
            log.info("%s worker %s is %sready%s", worker.role, worker.url, "" if ready else "not ", why)
            if ready and self._has_other_weights(worker):
                log.warning("%s has other weights than other workers: answers differ by who is asked", worker.url)

    def _has_other_weights(self, worker: Worker) -> bool:
        """Than another ready one of its revision, as far as is known."""
        same = (each for each in self.workers if each.ready and each.member.revision == worker.member.revision)
        return bool(worker.weights and {each.weights for each in same} - {"", worker.weights})

    def _set_ready(self, worker: Worker, why_not: str) -> None:
        ready, worker.why = not why_not, why_not
        if worker.ready != ready:
            worker.ready = ready
            if ready:
                worker.arrival = next(self._arrivals)
            self._changed.set()
            self._changed = asyncio.Event()


class Reservation:
    """A booking with the cluster's clock."""

    def __init__(self, booking: Booking, now: Callable[[], float]) -> None:
        self._booking = booking
        self._now = now

    def produced(self, num_tokens: int) -> None:
        """Output tokens arrived, so the prompt is computed too."""
        self._booking.produced(num_tokens, self._now())

    def release(self) -> None:
        """The request has ended there, in whatever way."""
        self._booking.release(self._now())
