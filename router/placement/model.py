"""What the router has learned of its cluster: step costs per kind of worker, link costs, hops, answers, reuse.

Fed with what workers and requests report; gives the frozen costs that a snapshot carries.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.protocol import StepTiming
from penstock.router.placement.costs import PRIOR_LINK, PRIOR_STEP, LinkCost, StepCost
from penstock.router.placement.fit import RatioFit, is_possible
from penstock.router.policy import EXPECTED_OUTPUT_TOKENS, LinkClass

REFIT_SAMPLES = 16
"""Costs are solved anew after so many samples: solving takes 50 us."""
_MEMORY = 256
"""Requests over which hops, reuse and lengths of answers are averaged."""
_FIRST_ZEROS, _MOST_RESTS = 15, 64
_MOST_TOKENS = 10**9
"""No step has more tokens, nor as many pairs as its square."""
_SLOWEST = math.log(4)
"""A single worker is taken to be at most four times slower or faster than its kind. One that is further from the usual
of its kind, by its own account, teaches the kind nothing."""
_FARTHEST = 2 * _SLOWEST
"""More than this by which one step is slower or faster counts as this."""
_JUDGED_SAMPLES, _MAJORITY = 64, 3
"""From so many samples on a worker is judged, by so many workers of its kind at least: of two, none is the odd one."""


class StepFit:
    """One kind of worker."""

    def __init__(self) -> None:
        self._fit = RatioFit(5, num_sorts=2)
        self._since_solved = 0
        self.cost = PRIOR_STEP

    def add(self, timing: StepTiming, *, learn: bool = True) -> float | None:
        """Takes one step, and learns from it; log(measured / fitted before), or None when it cannot be true."""
        counts = (timing.prefill_tokens, timing.prefill_pairs, timing.decode_tokens, timing.context_tokens)
        if min(counts) < 0 or max(counts) > _MOST_TOKENS**2 or timing.prefill_tokens + timing.decode_tokens < 1:
            return None
        parts = step_parts(timing)
        if not is_possible(parts, timing.seconds):
            return None
        if learn:
            self._learn(parts, timing)
        return self._fit.error(parts, timing.seconds)

    def _learn(self, parts: tuple[float, ...], timing: StepTiming) -> None:
        self._fit.add(parts, timing.seconds, sort=0 if timing.prefill_tokens else 1)
        self._since_solved += 1
        if self._since_solved >= REFIT_SAMPLES or self._fit.num_samples < REFIT_SAMPLES:
            self._since_solved = 0
            self.cost = _scaled(self._fit.solve())


def step_parts(timing: StepTiming) -> tuple[float, ...]:
    """A step's seconds by the prior, in the order of StepCost's fields."""
    return (
        PRIOR_STEP.step_s,
        PRIOR_STEP.prefill_token_s * timing.prefill_tokens,
        PRIOR_STEP.prefill_pair_s * timing.prefill_pairs,
        PRIOR_STEP.decode_token_s * timing.decode_tokens,
        PRIOR_STEP.context_token_s * timing.context_tokens,
    )


def _scaled(ratios: tuple[float, ...]) -> StepCost:
    step, token, pair, decode, context = ratios
    return StepCost(
        step * PRIOR_STEP.step_s,
        token * PRIOR_STEP.prefill_token_s,
        pair * PRIOR_STEP.prefill_pair_s,
        decode * PRIOR_STEP.decode_token_s,
        context * PRIOR_STEP.context_token_s,
    )


@dataclass(slots=True)
class WorkerFit:
    """How one worker differs from its kind, and whether what it reports can be believed."""

    kind: str = ""
    log_slowness: float = 0.0
    num_samples: int = 0
    is_odd: bool = False
    """Whether what it reports is nothing like what others of its kind do."""
    refused: int = 0
    """Timings that were left out: they cannot be true, or the worker is odd."""
    of_kind: StepCost = PRIOR_STEP
    cost: StepCost = PRIOR_STEP
    """`of_kind` times the slowness, the same object until the kind's cost changes."""

    def add(self, error: float | None) -> None:
        self.refused += error is None or self.is_odd
        if error is not None:
            self.num_samples += 1
            self.log_slowness += (_within(_FARTHEST, error) - self.log_slowness) / _MEMORY


class Average:
    """Of the last values, exponentially; begins with `first`, which weighs as one of `weight` values."""

    def __init__(self, first: float, weight: int = 8) -> None:
        self.value = first
        self._count = weight

    def add(self, value: float) -> None:
        self._count = min(self._count + 1, _MEMORY)
        self.value += (value - self.value) / self._count


class Hops:
    """The usual rest of a request's time to first token, by whether a prefill worker took part.

    The first few are slow (workers meet), and what looks slow is chosen no more: so both begin with a row of zeros, and
    the one that is not used gets a zero now and then until it is tried again.
    """

    def __init__(self) -> None:
        self.usual = {False: 0.0, True: 0.0}
        self._rests = {pair: deque([0.0] * _FIRST_ZEROS, maxlen=_MOST_RESTS) for pair in self.usual}
        self._since = dict.fromkeys(self.usual, 0)
        """Samples of the other sort since the last of this one, or since the last zero."""

    def add(self, *, pair: bool, seconds: float) -> None:
        self._append(pair, seconds)
        self._since[not pair] += 1
        if self._since[not pair] >= _MOST_RESTS:
            self._append(not pair, 0.0)

    def _append(self, pair: bool, seconds: float) -> None:
        self._since[pair] = 0
        self._rests[pair].append(seconds)
        self.usual[pair] = max(0.0, statistics.median(self._rests[pair]))


class CostModel:
    """All that is learned."""

    def __init__(self) -> None:
        self._steps: dict[str, StepFit] = {}
        self._workers: dict[str, WorkerFit] = {}
        self._links: dict[LinkClass, RatioFit] = {}
        self.links: Mapping[LinkClass, LinkCost] = {}
        self.hops = Hops()
        self._output_tokens = Average(EXPECTED_OUTPUT_TOKENS)
        self._cached_tokens = Average(0.0)
        self._computed_tokens = Average(0.0)

    def stepped(self, url: str, kind: str, timings: Iterable[StepTiming]) -> int:
        """A worker's steps. How many of them were left out."""
        fit = self._steps.setdefault(kind, StepFit())
        worker = self._workers.setdefault(url, WorkerFit())
        worker.kind = kind
        refused, cost = worker.refused, fit.cost
        for timing in timings:
            worker.add(fit.add(timing, learn=not worker.is_odd))
        if fit.cost is not cost:
            self._judge(kind)
        return worker.refused - refused

    def _judge(self, kind: str) -> None:
        """Finds those who report what is nothing like what most of their kind do: if they have taught the kind more
        than the others (they may report more), it is learned anew, without them."""
        judged = [each for each in self._workers.values() if each.kind == kind and each.num_samples >= _JUDGED_SAMPLES]
        if len(judged) < _MAJORITY:
            return
        usual = statistics.median(each.log_slowness for each in judged)
        for worker in judged:
            worker.is_odd = abs(worker.log_slowness - usual) > (_SLOWEST / 2 if worker.is_odd else _SLOWEST)
        if abs(usual) > _SLOWEST / 2 and any(worker.is_odd for worker in judged):
            self._steps[kind] = StepFit()
            for worker in judged:
                worker.log_slowness -= usual

    def pulled(self, link: LinkClass, *, reads: int, tokens: int, seconds: float) -> None:
        """A request's KV came over a link of this class, in `reads` reads one after another."""
        fit = self._links.setdefault(link, RatioFit(2))
        if fit.add((PRIOR_LINK.latency_s * reads, PRIOR_LINK.token_s * tokens), seconds):
            latency, token = fit.solve()
            cost = LinkCost(latency * PRIOR_LINK.latency_s, token * PRIOR_LINK.token_s)
            self.links = {**self.links, link: cost}

    def answered(self, *, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """A request is complete."""
        self._output_tokens.add(output_tokens)
        self._cached_tokens.add(cached_tokens)
        self._computed_tokens.add(max(1, prompt_tokens - cached_tokens))

    def refused(self, url: str) -> int:
        """Timings of this worker that were left out."""
        worker = self._workers.get(url)
        return worker.refused if worker is not None else 0

    def forget(self, url: str) -> None:
        """A worker that is gone."""
        self._workers.pop(url, None)

    def cost(self, url: str, kind: str) -> StepCost:
        """Of one worker: its kind's, times how much slower it is."""
        fit = self._steps.get(kind)
        of_kind = fit.cost if fit is not None else PRIOR_STEP
        worker = self._workers.get(url)
        if worker is None:
            return of_kind
        if worker.of_kind is not of_kind:
            worker.of_kind, worker.cost = of_kind, of_kind.times(math.exp(_within(_SLOWEST, worker.log_slowness)))
        return worker.cost

    @property
    def output_tokens(self) -> int:
        """Usual length of an answer."""
        return max(1, round(self._output_tokens.value))

    @property
    def reuse(self) -> float:
        """Tokens found in a cache per token computed: what a computed token was worth later, on average."""
        return self._cached_tokens.value / max(1.0, self._computed_tokens.value)


def _within(most: float, value: float) -> float:
    return max(-most, min(most, value))
