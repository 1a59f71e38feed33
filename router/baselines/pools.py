"""What the baselines share: one worker of each pool, of one revision, never an excluded one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, WorkerState


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers, at least one, among which a request may go, and what is known besides."""

    request: PlacementRequest
    workers: Sequence[WorkerState]
    cluster: ClusterSnapshot

    def cached_share(self, worker: WorkerState) -> float:
        """How much of the prompt `worker` has in its cache."""
        return min(1.0, self.request.cached_tokens.get(worker.url, 0) / self.request.prompt_tokens)


class TwoPools(ABC):
    """A policy that looks at each pool alone, as most published ones do: for a decode, then for a prefill worker."""

    alone_below_tokens = 0
    """A decode worker computes the prompt itself when it lacks fewer tokens of it."""

    def choose(self, request: PlacementRequest, cluster: ClusterSnapshot) -> Placement | None:
        decoders = [each for each in cluster.decode if each.url not in request.excluded]
        if not decoders:
            return None
        decode = self.decode(Pool(request, decoders, cluster))
        prefills = [
            each
            for each in cluster.prefill
            if each.url not in request.excluded and each.revision == decode.revision and each.url != decode.url
        ]
        is_short = request.uncached(decode) < self.alone_below_tokens and decode.url not in request.busy
        if not prefills or is_short:
            return Placement(decode.url)
        pool = Pool(request, prefills, cluster)
        prefill = self.prefill(pool)
        return Placement(decode.url, prefill.url, self.source(pool, prefill))

    @abstractmethod
    def decode(self, pool: Pool) -> WorkerState:
        """Who streams the answer."""

    @abstractmethod
    def prefill(self, pool: Pool) -> WorkerState:
        """Who computes the prompt."""

    def source(self, pool: Pool, prefill: WorkerState) -> str | None:
        """Whose cached KV `prefill` reads."""
        del pool, prefill
        return None  # nobody's, in most policies


def in_flight(worker: WorkerState) -> int:
    """Requests on a worker: prompts to compute, sequences that decode or will."""
    return worker.prompts + worker.streams
