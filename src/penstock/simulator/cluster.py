"""The simulated cluster: workers, routers, what passes between them, and what breaks."""

import itertools
from dataclasses import dataclass
from functools import partial

from penstock.router.policy import Placement, PlacementRequest
from penstock.simulator.call import Call, Report
from penstock.simulator.clock import Clock
from penstock.simulator.kinds import WorkerKind
from penstock.simulator.outcome import Outcome
from penstock.simulator.router import NewPolicy, Router, Stream
from penstock.simulator.trace import Trace, TraceRequest
from penstock.simulator.worker import Worker


@dataclass(frozen=True)
class Fault:
    """A worker's process dies, and another one is ready in its place after `down_s`."""

    time_s: float
    url: str
    down_s: float


@dataclass(frozen=True)
class ClusterSpec:
    """What is simulated. Prefill workers are called p0, p1, ..., decode workers d0, d1, ..."""

    prefill: tuple[WorkerKind, ...]
    decode: tuple[WorkerKind, ...]
    routers: int = 1
    """Requests are dealt to them in turn."""
    hop_s: float = 0.5e-3
    """Of a message between any two processes."""
    event_delay_s: float = 5e-3
    """From a worker's step to the router that reads its events."""
    share_delay_s: float | None = 5e-3
    """Until other routers know a reservation; None: they never do, as without Redis."""
    ahead_s: float | None = None
    """Seconds of prompts that a worker may have ahead before requests wait in the router, as RouterConfig has it; None:
    they are placed as they come, as routers do that have no queue."""
    detect_s: float = 0.1
    """From a worker's death to the end of its connections."""
    faults: tuple[Fault, ...] = ()

    @property
    def price_per_hour(self) -> float:
        return sum(kind.price_per_hour for kind in (*self.prefill, *self.decode))


@dataclass(frozen=True)
class Run:
    """What came of it."""

    outcomes: tuple[Outcome, ...]
    busy: dict[str, float]
    """Per worker, which share of the time it computed."""
    preemptions: int
    held_blocks: int
    """Blocks that somebody still holds when all is over; 0, or the engine's bookkeeping leaks."""


def simulate(trace: Trace, spec: ClusterSpec, new_policy: NewPolicy, new_worker: type[Worker] = Worker) -> Run:
    """Replays `trace`: every request arrives when it did, whatever became of those before.

    `new_policy` makes each router's policy from its journal, and `new_worker` the workers, for those who simulate
    another engine.
    """
    return _Cluster(spec, new_policy, new_worker).run(trace)


class _Cluster:
    def __init__(self, spec: ClusterSpec, new_policy: NewPolicy, new_worker: type[Worker]) -> None:
        self._spec = spec
        self._clock = Clock()
        kinds = {f"p{number}": kind for number, kind in enumerate(spec.prefill)}
        kinds |= {f"d{number}": kind for number, kind in enumerate(spec.decode)}
        roles = {url: "prefill" if url.startswith("p") else "decode" for url in kinds}
        self._workers = {
            url: new_worker(url, kind, self._clock, spec.hop_s, self._reported) for url, kind in kinds.items()
        }
        self._routers = [
            Router(
                self._clock,
                new_policy,
                self._workers,
                roles,
                hop_s=spec.hop_s,
                ahead_s=spec.ahead_s,
                share=self._shared,
            )
            for _ in range(spec.routers)
        ]

    def run(self, trace: Trace) -> Run:
        outcomes: list[Outcome] = []
        turns = itertools.cycle(self._routers)

        def arrive(request: TraceRequest) -> None:
            outcomes.append(next(turns).arrive(request))

        for request in trace.requests:
            self._clock.at(request.arrival_s, partial(arrive, request))
        for fault in self._spec.faults:
            self._clock.at(fault.time_s, partial(self._break, fault))
        self._clock.run()
        busy = {url: worker.busy_s / self._clock.now_s for url, worker in self._workers.items()}
        preemptions = sum(worker.num_preemptions for worker in self._workers.values())
        held_blocks = sum(worker.pool.num_held for worker in self._workers.values())
        return Run(tuple(outcomes), busy, preemptions, held_blocks)

    def _reported(self, worker: Worker, report: Report) -> None:
        def heard() -> None:
            for router in self._routers:
                router.heard(worker.url, report)

        self._clock.after(self._spec.event_delay_s, heard)

    def _shared(self, stream: Stream, placement: Placement, request: PlacementRequest) -> None:
        """Books a placement with the other routers too, if they are told and it is not over by then."""
        delay_s, own = self._spec.share_delay_s, stream.bookings
        if delay_s is None or len(self._routers) == 1:
            return

        def told() -> None:
            if own is stream.bookings:
                others = (router for router in self._routers if router is not stream.router)
                own.extend(router.books.book(placement, request, self._clock.now_s) for router in others)

        self._clock.after(delay_s, told)

    def _break(self, fault: Fault) -> None:
        worker = self._workers[fault.url]
        if not worker.up:
            return  # dead already
        calls = sorted(worker.stop(), key=lambda call: call.trace.index)
        self._clock.after(self._spec.detect_s, lambda: self._detect(worker, calls))
        self._clock.after(fault.down_s, lambda: self._restart(worker))

    def _detect(self, worker: Worker, calls: list[Call]) -> None:
        for router in self._routers:
            router.lost(worker.url)
        for call in calls:
            if call.decode is worker and call.prefill is not None:
                call.prefill.release(call)
            elif call.decode is not worker:
                call.decode.abandon(call)
            call.caller.lost(worker)

    def _restart(self, worker: Worker) -> None:
        worker.start()
        for router in self._routers:
            router.lost(worker.url)
            router.found(worker.url)
