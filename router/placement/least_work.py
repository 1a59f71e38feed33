"""The policy that looks at load alone: simple, and right whatever predictions are worth."""

from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, WorkerState


class LeastWork:
    """Each pool's worker with the least work ahead, counting what this prompt adds there after its prefix match.

    The prompt runs on the decode worker alone when handing over is not worth it:
    - fewer than `min_prefill_tokens` are uncached there: a hand-over costs a hop and a transfer (some ms), while so few
      rows ride along in one decode step without making it longer in a way the other streams could feel;
    - or the prefill worker would compute four times as much, because the conversation's cache is on the decode worker.
    Otherwise a long prompt on a decode worker would hold up every stream that runs there.
    """

    def __init__(self, min_prefill_tokens: int = 16) -> None:
        self._min_prefill_tokens = min_prefill_tokens

    def choose(self, request: PlacementRequest, cluster: ClusterSnapshot) -> Placement | None:
        decode = _least(request, cluster.decode)
        if decode is None:
            return None
        prefill = _least(request, tuple(state for state in cluster.prefill if state.revision == decode.revision))
        if prefill is None or prefill.url == decode.url:
            return Placement(decode.url)
        on_decode, on_prefill = request.uncached(decode), request.uncached(prefill)
        is_better_alone = on_decode < self._min_prefill_tokens or 4 * on_decode <= on_prefill
        if is_better_alone and decode.url not in request.busy:
            return Placement(decode.url)
        return Placement(decode.url, prefill.url)


def _least(request: PlacementRequest, workers: tuple[WorkerState, ...]) -> WorkerState | None:
    candidates = [worker for worker in workers if worker.url not in request.excluded]
    return min(candidates, key=lambda worker: worker.work + request.uncached(worker), default=None)
