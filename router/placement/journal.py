"""The log of decisions: what was predicted, what came true, and what that says about the predictions."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from penstock.protocol import Done
from penstock.router.placement.drift import DRIFTS, Drift, is_off
from penstock.router.placement.model import CostModel
from penstock.router.placement.objective import Seconds
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, Prediction, link_class

REMEMBERED = 1000
"""Decisions that can be explained; one holds its snapshot, about 20 KB with 64 workers."""
REGRET_OF = 16
"""Regret takes one more choice, so it is computed for one decision in so many, and when a decision is explained."""
_SLACK_S, _SLACK_TOKENS = 0.1, 64
"""Predictions are not off by less."""

Judge: TypeAlias = Callable[[str, int, int], bool]
"""Takes a worker, the cached tokens that it told of, and those that were found; whether it is still believed."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Decision:
    """One placement of one request."""

    request_id: str
    request: PlacementRequest
    cluster: ClusterSnapshot
    placement: Placement
    answered_tokens: int = 0
    """Of the request's prompt tokens, those that are its answer so far: it was placed again."""
    after: str = ""
    """How the placement before this one failed, where there was one."""
    failure: str = ""
    """How this one did."""
    ttft_s: float | None = None
    """Measured from the placement to its first token; None while it has not come."""
    cached_tokens: int | None = None
    """By the account of the worker that computed the prompt."""
    regret_s: float | None = None
    """See `regret_s`; of one decision in REGRET_OF."""


class Journal:
    """The last decisions, and the drift of predicted times and of predicted cached tokens."""

    def __init__(self, model: CostModel, judge: Judge = lambda *_: True) -> None:
        self._judge = judge
        self.ttft = Drift()
        self.cached = Drift()
        self._model = model
        self._decisions: OrderedDict[str, Decision] = OrderedDict()
        self._num_true = 0

    @property
    def alarms(self) -> tuple[str, ...]:
        """Which of DRIFTS."""
        return tuple(name for name, drift in zip(DRIFTS, (self.ttft, self.cached), strict=True) if drift.alarmed)

    def placed(
        self,
        request_id: str,
        request: PlacementRequest,
        cluster: ClusterSnapshot,
        placement: Placement,
        *,
        answered_tokens: int = 0,
        after: str = "",
    ) -> Decision:
        """A request was placed. A second placement of the same request replaces the first."""
        decision = Decision(request_id, request, cluster, placement, answered_tokens, after)
        self._decisions[request_id] = decision
        self._decisions.move_to_end(request_id)
        if len(self._decisions) > REMEMBERED:
            self._decisions.popitem(last=False)
        return decision

    def came_true(self, decision: Decision, ttft_s: float, cached_tokens: int | None) -> None:
        """The first token came. Learns from it."""
        prediction = decision.placement.prediction
        decision.ttft_s, decision.cached_tokens = ttft_s, cached_tokens
        self._learn(decision, ttft_s, cached_tokens)
        if prediction is None:
            return
        if self._num_true % REGRET_OF == 0:
            decision.regret_s = regret_s(decision)
        self._num_true += 1
        log.debug("the first token has come", extra=_facts(decision, prediction))

    def _learn(self, decision: Decision, ttft_s: float, cached_tokens: int | None) -> None:
        prediction = decision.placement.prediction
        worker, told = decision.placement.relies_on(decision.request)
        misses = cached_tokens is not None and is_off(cached_tokens, told, _SLACK_TOKENS)
        if misses and worker in decision.request.pending:
            return  # told by this router itself: whoever was to compute it may have been cancelled
        is_believed = cached_tokens is None or self._judge(worker, told, cached_tokens)
        if prediction is None:
            return
        if is_believed:
            if prediction.queue_s == 0:
                rest_s = ttft_s - prediction.prefill_s - prediction.pull_s
                self._model.hops.add(pair=decision.placement.prefill is not None, seconds=rest_s)
            self.ttft.add(worker, off=is_off(ttft_s, prediction.ttft_s, _SLACK_S))
            if cached_tokens is not None:
                self.cached.add(worker, off=misses)
        else:  # what is wrong with one worker says nothing about the others
            self.ttft.leave_out(worker)
            self.cached.leave_out(worker)

    def finished(self, decision: Decision, done: Done) -> None:
        """The decode worker's last frame: it says how long its reads took."""
        workers = {each.url: each for each in (*decision.cluster.prefill, *decision.cluster.decode)}
        source = workers.get(decision.placement.prefill or decision.placement.source or "")
        decode = workers.get(decision.placement.decode)
        if done.pulls and source is not None and decode is not None:
            tokens = done.pulled_blocks * decode.block_tokens
            self._model.pulled(link_class(source, decode), reads=done.pulls, tokens=tokens, seconds=done.pull_s)

    def answered(self, decision: Decision, output_tokens: int) -> None:
        """An answer is complete, or as complete as anybody wants it."""
        prompt_tokens, cached_tokens = decision.request.prompt_tokens, decision.cached_tokens or 0
        self._model.answered(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, output_tokens=output_tokens)

    def find(self, request_id: str) -> Decision | None:
        """The last decision about a request, as long as it is remembered."""
        return self._decisions.get(request_id)


def regret_s(decision: Decision) -> float | None:
    """Seconds by which the first token came later than the best choice that has another worker compute the prompt would
    have brought it, as predicted. None while it has not come, and where the policy predicts nothing: then nothing is
    learned about predictions either."""
    if decision.ttft_s is None or decision.placement.prediction is None:
        return None
    others = replace(decision.request, excluded=decision.request.excluded | {decision.placement.computing})
    other = Seconds().choose(others, decision.cluster)
    if other is None or other.prediction is None:
        return 0.0
    return max(0.0, decision.ttft_s - other.prediction.ttft_s)


def _facts(decision: Decision, prediction: Prediction) -> dict[str, object]:
    """Fields of a log line."""
    return {
        "placed": decision.request_id,
        "by": decision.placement.by,
        "decode": decision.placement.decode,
        "prefill": decision.placement.prefill,
        "source": decision.placement.source,
        "prompt_tokens": decision.request.prompt_tokens,
        "cached_tokens": decision.cached_tokens,
        "predicted_cached_tokens": prediction.cached_tokens,
        "ttft_s": decision.ttft_s,
        "predicted_ttft_s": prediction.ttft_s,
        "regret_s": decision.regret_s,
    }
