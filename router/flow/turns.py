"""One request's turn: the best placement whose workers have room. Pure.

When the best one's workers are full, the best of the others is taken, but only after as long a wait as it costs more:
delay scheduling (Zaharia et al. 2010), with what a cache saves, or the streams of a decode worker lose, as the delay.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from penstock.errors import DeadlineExceeded, RequestError
from penstock.router.flow.room import Room, compute_s, workers_of
from penstock.router.placement.costs import PRIOR_STEP
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest

_SURELY = 1.25
"""A prompt must be predicted to take so many times as long as there is, before it is refused for good."""
_PAUSE, _LEAST_S = 20, 0.5
"""Between two such prompts that are tried all the same: times as long as there is, or as this if that is longer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One attempt to place a request."""

    queued_s: float = 0.0
    """Since the request came."""
    in_line: bool = False
    """More wait that do not go behind this one."""
    waiting: int = 0
    """How many wait that do not go behind it, with this one once it does."""
    heavy: bool = False
    """The tenant has had more lately than others (usage.py)."""
    priority: int = 0
    """Among a worker's prompts."""
    kept: str = ""
    """A worker that is kept for another request."""
    waited_s: float = 0.0
    """Since it could first have gone to a worker that was not its best."""
    remaining_s: float = math.inf
    """Of its deadline."""


class Retest:
    """Lets a prompt that is predicted to be too late through now and then: while none is computed, nobody would see
    that workers have become faster. One goes when none was computed, or tried in vain, for 20 times as long as its
    client waits, and at once after one that was in time."""

    def __init__(self) -> None:
        self._since_s = -math.inf
        """When a prompt was computed, or a tested one was not; infinite while one is tested."""

    def is_due(self, turn: Turn, now_s: float) -> bool:
        """For a prompt that was refused; true when it may go all the same."""
        return now_s - self._since_s >= _PAUSE * max(_LEAST_S, turn.remaining_s)

    def begins(self) -> None:
        """One goes."""
        self._since_s = math.inf

    def computed(self, now_s: float, *, tested: bool) -> None:
        """A prompt was, before its client's deadline."""
        self._since_s = -math.inf if tested else max(self._since_s, now_s)

    def in_vain(self, now_s: float) -> None:
        """The tested one has ended without a token."""
        self._since_s = now_s


@dataclass(frozen=True, slots=True)
class Busy:
    """There is no room yet."""

    compute_s: float = 0.0
    """To the first token, once its worker begins with it."""
    could_go: bool = False
    """Another worker than its best has room."""
    waits_for: str = ""
    """The decode worker that is the best for it, if it does not fit anywhere."""


def take_turn(
    choose: Callable[[PlacementRequest], Placement | None],
    wanted: PlacementRequest,
    cluster: ClusterSnapshot,
    room: Room,
    turn: Turn,
) -> Placement | Busy | None:
    """`choose` gives the policy's choice, for `wanted` and then without some workers, and is asked three times at most,
    however many are full. None when there is no worker at all.

    Raises RequestError for a prompt that takes longer to compute than its client waits, DeadlineExceeded for one that
    would not have, had it not waited here.
    """
    free = replace(wanted, excluded=wanted.excluded | {turn.kept}) if turn.kept else wanted
    best = choose(free) or choose(wanted)
    if best is None:
        return None
    best_s = compute_s(cluster, best, wanted)
    _check_time(turn, best_s, cluster, best)
    limits = room.of(in_line=turn.in_line, heavy=turn.heavy)
    lacking = limits.lacking(cluster, best, num_answers=wanted.num_answers)
    if not lacking and best.decode != turn.kept:
        return best
    for narrower in limits.narrower(cluster, free, lacking):
        placement = choose(narrower)
        if placement is None or not limits.lacking(cluster, placement, num_answers=wanted.num_answers):
            break
    if placement is None:
        return Busy(best_s, waits_for=best.decode)
    if turn.waited_s < _more_s(cluster, best, placement, compute_s(cluster, placement, wanted) - best_s):
        return Busy(best_s, could_go=True)
    return placement


def _more_s(cluster: ClusterSnapshot, best: Placement, placement: Placement, own_s: float) -> float:
    """What `placement` costs more than `best`: everybody, or only this prompt (`own_s`) while predictions are off.

    Those who wait in the router count where a prefill worker computes the prompt, which is what they wait for. But one
    that has room helps none of them while everybody waits for a decode worker instead.
    """
    one, other = placement.prediction, best.prediction
    if one is None or other is None or not (one.trusted and other.trusted):
        return own_s
    more_s = one.total_s - other.total_s
    if _is_by_prefill(cluster, placement) and not _is_by_prefill(cluster, best):
        more_s -= cluster.waiting / len(cluster.prefill) * one.prefill_s
    return more_s


def _is_by_prefill(cluster: ClusterSnapshot, placement: Placement) -> bool:
    return any(worker.url == placement.prefill for worker in cluster.prefill)


def _check_time(turn: Turn, seconds: float, cluster: ClusterSnapshot, placement: Placement) -> None:
    """Not even an idle cluster could begin to answer in time, as far as its speed is known."""
    computing = workers_of(cluster, placement)[1]
    if computing is None or computing.cost == PRIOR_STEP or seconds <= _SURELY * max(0.0, turn.remaining_s):
        return
    whole_s = turn.remaining_s + turn.queued_s
    if seconds <= _SURELY * whole_s:
        raise DeadlineExceeded(
            f"the request waited for its turn until {max(0.0, turn.remaining_s):.3g} s were left, and its prompt takes "
            f"about {seconds:.3g} s to compute"
        )
    raise RequestError(
        f"the prompt takes about {seconds:.3g} s to compute, but the client waits {max(0.0, whole_s):.3g} s",
        field="timeout",
        code="deadline_too_short",
        status=503,
    )
