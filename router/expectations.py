"""What is expected of placements, and what is learned when it has come true or not: cached prompts, times, answers.

A worker will hold what it computes, long before its events tell of it: until then the index has the router's own word.
"""

import asyncio
import logging
from collections.abc import Sequence

from penstock.protocol import Done
from penstock.router.index.keys import PromptKeys
from penstock.router.index.prefix_index import Expectation, PrefixIndex
from penstock.router.metrics import Metrics
from penstock.router.placed import Placed
from penstock.router.placement.journal import REGRET_OF, Journal

CONFIRMATION_S = 1.0
"""So long after a worker has computed what it was given, its events must have told of it."""

log = logging.getLogger(__name__)


class Expectations:
    """Shared by all requests of the router."""

    def __init__(self, index: PrefixIndex, journal: Journal, metrics: Metrics) -> None:
        self._index = index
        self._journal = journal
        self._metrics = metrics

    def placed(self, computing: str, keys: PromptKeys) -> list[Expectation]:
        """A worker will compute a prompt, and hold it."""
        return [self._index.expect(computing, keys)]

    def accepted(self, placed: Placed, generation: str) -> None:
        """A decode worker answered; another process than before has an empty cache."""
        placed.is_accepted = True
        self._index.met(placed.decode, generation)

    def computed(self, placed: Placed, cached_tokens: int | None) -> None:
        """The first token came, with what was really found in a cache, so the decode worker holds the prompt or soon
        will: until now another request for it would have found nothing there, and computing it on the prefill worker
        was the better choice."""
        placed.is_computed = True
        for expectation in placed.expected:
            expectation.is_pending = False
        took_s = asyncio.get_running_loop().time() - placed.placed_at
        if placed.is_resume:  # nothing is learned from how an answer goes on
            placed.decision.ttft_s = took_s
        else:
            self._came_true(placed, took_s, cached_tokens)
        if placed.prefill is not None:
            placed.expected.append(self._index.expect(placed.decode, placed.keys))
        if cached_tokens is not None and not placed.is_resume:
            outcome = _outcome(placed.cached_tokens, cached_tokens)
            self._metrics.predictions.labels(outcome).inc()
            if outcome != "exact":
                log.debug("%s found %d of %d cached tokens", placed.decode, cached_tokens, placed.cached_tokens)
        _retract_soon(placed.expected)

    def learned(self, placed: Placed, outputs: Sequence[Sequence[int]]) -> None:
        """Answers have ended with these `outputs`, of which the decode worker now holds the first with its prompt, but
        for the last token, which was never fed to it.

        If each had but one token, the prefill worker sampled them and had no reason to hand over the prompt.
        """
        self._journal.answered(placed.decision, max(map(len, outputs)))
        if placed.prefill is not None and max(map(len, outputs)) <= 1:
            _retract(placed.expected[1:])
            return
        held = self._index.expect(placed.decode, placed.keys.followed_by(outputs[0][:-1]))
        for expectation in (*placed.expected, held):
            expectation.is_pending = False
        _retract_soon([held])

    def finished(self, placed: Placed, done: Done) -> None:
        """The stream's last frame came."""
        self._journal.finished(placed.decision, done)

    def ended(self, placed: Placed) -> None:
        """In whatever way."""
        if not placed.is_computed:
            _retract(placed.expected)

    def _came_true(self, placed: Placed, took_s: float, cached_tokens: int | None) -> None:
        decision = placed.decision
        self._journal.came_true(decision, took_s, cached_tokens)
        prediction = decision.placement.prediction
        if prediction is not None and decision.ttft_s is not None:
            self._metrics.ttft_error.observe(abs(decision.ttft_s - prediction.ttft_s))
            self._metrics.regret.inc(REGRET_OF * (decision.regret_s or 0.0))


def _retract_soon(expected: list[Expectation]) -> None:
    asyncio.get_running_loop().call_later(CONFIRMATION_S, _retract, expected)


def _retract(expected: list[Expectation]) -> None:
    for expectation in expected:
        expectation.retract()


def _outcome(predicted: int, actual: int) -> str:
    return "exact" if actual == predicted else "fewer" if actual < predicted else "more"
