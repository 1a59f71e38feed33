"""Where a request runs: a pure choice over a snapshot, so that policies can be simulated and compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

EXPECTED_OUTPUT_TOKENS = 256
"""Answers are assumed no longer than this: most requests leave `max_tokens` at the rest of the context."""


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """What the router has in flight on one ready worker, in tokens."""

    url: str
    prefill_tokens: int = 0
    """Prompt tokens still to be computed there."""
    output_tokens: int = 0
    """Output tokens still expected from there."""
    revision: str = ""
    """Only workers of one revision are paired: others may have other weights or another layout of the KV cache."""

    @property
    def work(self) -> int:
        return self.prefill_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """The workers that are ready now."""

    prefill: tuple[WorkerLoad, ...] = ()
    decode: tuple[WorkerLoad, ...] = ()


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What a policy may know of a request."""

    prompt_tokens: int
    cached_tokens: Mapping[str, int] = field(default_factory=dict)
    """Per worker URL, how much of the prompt it probably has in its cache."""
    excluded: frozenset[str] = frozenset()
    """Workers that have already failed this request."""

    def uncached(self, worker: WorkerLoad) -> int:
        """Prompt tokens `worker` would have to compute; the last one is always computed."""
        return max(1, self.prompt_tokens - self.cached_tokens.get(worker.url, 0))


@dataclass(frozen=True, slots=True)
class Placement:
    """`decode` streams the answer; `prefill` computes the prompt, or `decode` does it alone."""

    decode: str
    prefill: str | None = None
    source: str | None = None
    """Whose cached KV the computing worker pulls before it computes the rest of the prompt."""


class Policy(Protocol):
    """How placements are chosen."""

    def choose(self, request: PlacementRequest, cluster: ClusterSnapshot) -> Placement | None:
        """None when no decode worker is left. Must not choose an excluded worker, nor a pair of two revisions."""
        ...


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
        prefill = _least(request, tuple(load for load in cluster.prefill if load.revision == decode.revision))
        if prefill is None or prefill.url == decode.url:
            return Placement(decode.url)
        on_decode, on_prefill = request.uncached(decode), request.uncached(prefill)
        if on_decode < self._min_prefill_tokens or 4 * on_decode <= on_prefill:
            return Placement(decode.url)
        return Placement(decode.url, prefill.url)


def _least(request: PlacementRequest, workers: tuple[WorkerLoad, ...]) -> WorkerLoad | None:
    candidates = [worker for worker in workers if worker.url not in request.excluded]
    return min(candidates, key=lambda worker: worker.work + request.uncached(worker), default=None)
