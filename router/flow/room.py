"""Whether a worker should take a request yet. Pure, over the snapshot that policies see.

What is with a worker can no longer be ordered between tenants, so it should be little: enough work ahead that the
worker never runs dry between two requests, and no more streams than its engine batches. All else waits in the router.
"""

from dataclasses import dataclass, replace

from penstock.router.placement.prompts import prefill_s, queue_s
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, WorkerState

_SPARE = 4.0
"""A request that stands in no line may find so many times the usual work ahead of it: a burst that the workers can take
at once is not worth ordering."""
_PART = 8
"""A heavy tenant leaves one of so many streams to others. The rest may have as many more than a worker batches, whose
prompts are computed until streams have ended: else streams would be idle for as long."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much each worker may have ahead."""

    ahead_s: float
    """Seconds of prompts to compute, from which on a worker has enough."""

    def of(self, *, in_line: bool, heavy: bool) -> "Limits":
        """For a request beside which more wait (`in_line`), or whose tenant had more lately than others
        (`heavy`)."""
        return Limits(self.ahead_s if in_line or heavy else _SPARE * self.ahead_s, heavy)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a worker may have before a request of one kind."""

    most_s: float
    """Of prompts to compute."""
    heavy: bool

    def any(self, cluster: ClusterSnapshot, *, kept: str = "") -> bool:
        """Whether the smallest request might find room on other workers than `kept`: else looking for placements is in
        vain. True as well where no decode worker is at all: those who wait must be told."""
        workers = (*cluster.prefill, *cluster.decode)
        return not cluster.decode or (
            any(self._streams(worker) for worker in cluster.decode if worker.url != kept)
            and any(self._computes(worker, cluster) for worker in workers if worker.url != kept)
        )

    def lacking(self, cluster: ClusterSnapshot, placement: Placement, *, num_answers: int) -> frozenset[str]:
        """The workers of `placement` that have no room."""
        decode, computing = workers_of(cluster, placement)
        found = set()
        if computing is not None and not self._computes(computing, cluster):
            found.add(computing.url)
        if decode is not None:
            prediction = placement.prediction
            waits_s = prediction.admit_s if prediction and prediction.trusted else 0.0
            if not self._streams(decode, num_answers) or (decode.streams and waits_s >= self.most_s):
                found.add(decode.url)
        return frozenset(found)

    def narrower(
        self, cluster: ClusterSnapshot, request: PlacementRequest, lacking: frozenset[str]
    ) -> tuple[PlacementRequest, PlacementRequest]:
        """What to ask for when the best placement's workers `lacking` have no room: one in which each worker does only
        what it has room for, and one on decode workers that have no prompts and memory enough, should that lack too."""
        busy = frozenset(worker.url for worker in cluster.decode if not self._computes(worker, cluster))
        full = request.excluded | (lacking - busy)
        full |= {worker.url for worker in cluster.prefill if not self._computes(worker, cluster)}
        full |= {worker.url for worker in cluster.decode if not self._streams(worker, request.num_answers)}
        short = {worker.url for worker in cluster.decode if worker.streams and _is_short(worker, request)}
        return replace(request, excluded=full, busy=busy), replace(request, excluded=full | busy | short)

    def _computes(self, worker: WorkerState, cluster: ClusterSnapshot) -> bool:
        """Whether `worker` takes another prompt."""
        return not worker.prefill_tokens or queue_s(worker, cluster.now_s) < self.most_s

    def _streams(self, worker: WorkerState, num: int = 1) -> bool:
        """Whether `worker` takes so many more streams. An idle one takes any number: there will never be more room."""
        if not worker.streams or not worker.max_streams:
            return True
        part = worker.max_streams // _PART
        return worker.streams + num <= (worker.max_streams - part if self.heavy else worker.max_streams + part)


def compute_s(cluster: ClusterSnapshot, placement: Placement, request: PlacementRequest) -> float:
    """Seconds to the first token once its worker begins with it; 0 while predictions are off."""
    prediction = placement.prediction
    if prediction is not None:
        return prediction.ttft_s - prediction.queue_s if prediction.trusted else 0.0
    _, computing = workers_of(cluster, placement)
    if computing is None:
        return 0.0
    return prefill_s(computing, request.prompt_tokens, request.cached_tokens.get(computing.url, 0))


def workers_of(cluster: ClusterSnapshot, placement: Placement) -> tuple[WorkerState | None, WorkerState | None]:
    """Who decodes and who computes the prompt (perhaps another decode worker), as far as they are in the snapshot."""
    decode = _find(cluster.decode, placement.decode)
    return decode, _find(cluster.prefill + cluster.decode, placement.prefill) if placement.prefill else decode


def _find(workers: tuple[WorkerState, ...], url: str) -> WorkerState | None:
    return next((worker for worker in workers if worker.url == url), None)


def _is_short(worker: WorkerState, request: PlacementRequest) -> bool:
    """Of memory for the prompt."""
    needed = request.prompt_tokens + 1 - request.cached_tokens.get(worker.url, 0)
    return bool(worker.num_tokens) and needed > worker.free_tokens
