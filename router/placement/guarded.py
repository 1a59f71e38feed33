"""The router's policy. When predictions are off for a while, cost-based placement is worse than none that is simple:
then it places by load alone, and goes on predicting, so that it sees when predictions are good again."""

from dataclasses import replace

from penstock.router.placement.journal import Journal
from penstock.router.placement.least_work import LeastWork
from penstock.router.placement.objective import Seconds
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest


class Guarded:
    """Seconds, or load alone while the journal's predictions are off."""

    def __init__(self, journal: Journal, min_prefill_tokens: int = 16) -> None:
        self._journal = journal
        self._seconds = Seconds()
        self._load = LeastWork(min_prefill_tokens)

    def choose(self, request: PlacementRequest, cluster: ClusterSnapshot) -> Placement | None:
        """See policy.Policy."""
        if not self._journal.alarms:
            return self._seconds.choose(request, cluster)
        placement = self._load.choose(replace(request, cached_tokens={}), cluster)
        if placement is None:
            return None
        prediction = self._seconds.predict(request, cluster, placement)
        return replace(placement, prediction=prediction and replace(prediction, trusted=False))
