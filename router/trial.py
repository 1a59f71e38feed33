"""The history of one request's placements: who is to blame for an error, who is excluded, when it has failed. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from penstock.errors import (
    PrefillDied,
    PrefillLost,
    PrefillRefused,
    RetryableError,
    Stopping,
    TransferError,
    WorkerLost,
    WorkerSilent,
)
from penstock.router.index.keys import PromptKeys
from penstock.router.placed import Placed
from penstock.router.policy import Placement

PROGRESS_TOKENS = 16
"""Of each answer: a placement that brought so many was no failure of the request. (Fewer, and a request at which every
worker dies after a token or two would go through all of them.)"""


@dataclass(slots=True)
class Trial:
    """Of one request, or of one of its answers that goes on alone."""

    attempts: int = 0
    """Since the last progress."""
    excluded: dict[str, int] = field(default_factory=dict)
    """Workers that failed it, with the number of their arrival: after a restart they are worth a try again."""
    last_error: RetryableError | None = None
    keys: PromptKeys | None = None
    """Of the prompt, made when first needed."""
    has_begun: bool = False
    """There is output."""
    is_suspect: bool = False
    """It may have caused the loss of a worker; no output came since."""
    weights: str = ""
    """Of the last worker."""
    leaving: Placed | None = None
    """The placement whose worker has just handed the request over: for a moment all of its KV can be read there."""

    def copy(self) -> "Trial":
        return replace(self, excluded=dict(self.excluded))

    def failed(self, placed: Placed, error: RetryableError, *, num_output: int, max_attempts: int) -> None:
        """Notes an attempt that ended after `num_output` output tokens.

        Raises the error when the request may not be placed again.
        """
        self.last_error = error
        self.has_begun = num_output > 0
        if placed.num_output >= PROGRESS_TOKENS * placed.decision.request.num_answers:
            self.attempts = 1
            self.excluded.clear()
        worker = blamed(placed, error)
        self.excluded[worker] = placed.arrivals[worker]
        if isinstance(error, Stopping) and placed.is_computed:
            self.leaving = placed
        if placed.num_output:
            self.is_suspect = False
        if may_have_caused(placed, error):
            if self.is_suspect:
                raise WorkerLost(f"a second worker was lost at the same place, maybe by this request: {error}")
            self.is_suspect = True
        if self.attempts >= max_attempts:
            raise error

    def still_excluded(self, arrivals: Callable[[str], int]) -> frozenset[str]:
        """Those that have not come back since."""
        return frozenset(url for url, arrival in self.excluded.items() if arrivals(url) == arrival)

    def take_over(self, placement: Placement, revision: str) -> Placement:
        """From a worker that hands its streams over all KV can be read: nothing is left for a prefill worker.

        `revision` is of the placement's decode worker.
        """
        leaving, self.leaving = self.leaving, None
        if leaving is None or leaving.revision != revision:
            return placement
        return Placement(placement.decode, source=leaving.decode, by="hand-over")

    def pause_s(self, longest_s: float) -> float:
        """Every worker left is full: seconds until all may be tried again. Raises the error of a request that streams
        nothing yet: that one is the client's to repeat, a running stream is ours to save."""
        assert self.last_error is not None
        if not self.has_begun:
            raise self.last_error
        pause_s = min(self.last_error.retry_after_s or 0.1 * 2**self.attempts, longest_s)
        self.last_error = None
        self.excluded.clear()
        return pause_s


def blamed(placed: Placed, error: RetryableError) -> str:
    """The worker at fault, which is excluded for this request."""
    if isinstance(error, (PrefillLost, PrefillRefused, TransferError)) and placed.prefill is not None:
        return placed.prefill
    return placed.decode


def is_loss(placed: Placed, error: RetryableError) -> bool:
    """Whether the worker at fault is lost to all requests."""
    return isinstance(error, WorkerLost) or (isinstance(error, PrefillLost) and placed.prefill is not None)


def may_have_caused(placed: Placed, error: RetryableError) -> bool:
    """Whether the request itself may be why its worker died or is stuck. Workers fall silent for other reasons."""
    return placed.is_accepted and isinstance(error, (WorkerLost, PrefillDied)) and not isinstance(error, WorkerSilent)
