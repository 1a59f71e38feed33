"""Whether a worker should take a request yet. Pure, over the snapshot that policies see.

What is with a worker can no longer be ordered between tenants, so it should be little: enough work ahead that the
worker never runs dry between two requests, and no more streams than its engine batches. All else waits in the router.
"""

from dataclasses import dataclass

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

    def lacking(
        self, cluster: ClusterSnapshot, placement: Placement, *, num_answers: int, in_line: bool, heavy: bool
    ) -> frozenset[str]:
        """The workers of `placement` that have no room.

        `in_line`: the tenant has more waiting behind this; `heavy`: it has had far more lately than other tenants.
        """
        decode, computing = workers_of(cluster, placement)
        most_s = self.ahead_s if in_line or heavy else _SPARE * self.ahead_s
        prediction = placement.prediction
        found = set()
        if computing is not None and computing.prefill_tokens and queue_s(computing, cluster.now_s) >= most_s:
            found.add(computing.url)
        if decode is not None and decode.streams:  # an idle one takes whatever it is: there will never be more room
            most = _most_streams(decode, heavy=heavy)
            if (most and decode.streams + num_answers > most) or (
                prediction is not None and prediction.admit_s >= most_s
            ):
                found.add(decode.url)
        return frozenset(found)


def has_any(cluster: ClusterSnapshot) -> bool:
    """Whether some decode worker might take another stream: else looking for placements is in vain. True as well when
    there is none at all: those who wait must be told."""
    return not cluster.decode or any(not worker.max_streams or worker.streams < _most_streams(worker) for worker in cluster.decode)


def _most_streams(worker: WorkerState, *, heavy: bool = False) -> int:
    part = worker.max_streams // _PART
    return worker.max_streams - part if heavy else worker.max_streams + part


def compute_s(cluster: ClusterSnapshot, placement: Placement, request: PlacementRequest) -> float:
    """Seconds to the first token once its worker begins with it."""
    prediction = placement.prediction
    if prediction is not None:
        return prediction.ttft_s - prediction.queue_s
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
