"""What became of each request, and what that says of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.simulator.trace import TraceRequest


@dataclass(slots=True)
class Outcome:
    """One request. Times are of the trace's clock; None where it did not come so far."""

    request: TraceRequest
    first_token_s: float | None = None
    finish_s: float | None = None
    decode: str = ""
    prefill: str | None = None
    attempts: int = 0
    predicted_cached_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the worker which computed the rest found in its cache."""
    predicted_ttft_s: float | None = None
    placed_s: float | None = None
    """When its router first gave it to workers."""

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, at the router."""
        return None if self.first_token_s is None else self.first_token_s - self.request.arrival_s

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return 0.0 if self.finish_s is None or self.first_token_s is None else self.finish_s - self.first_token_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for answers of one token."""
        if self.finish_s is None or self.request.output_tokens < 2:
            return None
        return self.decode_s / (self.request.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a user is promised. An answer is good when it keeps both."""

    ttft_s: float
    tpot_s: float

    def met(self, outcome: Outcome) -> bool:
        ttft, tpot = outcome.ttft_s, outcome.tpot_s
        return outcome.finish_s is not None and ttft is not None and ttft <= self.ttft_s and (tpot or 0) <= self.tpot_s


@dataclass(frozen=True, slots=True)
class Summary:
    """One run in figures. Rates count what arrived and what ended while requests arrived."""

    offered_per_s: float
    completed_per_s: float
    goodput_per_s: float
    """Requests that keep the objectives, per second of arrivals."""
    ttft_p50_s: float
    ttft_p90_s: float
    tpot_s: float
    """Seconds from first to last tokens over all later tokens: every token counts the same."""
    cached_share: float
    """Of all prompt tokens."""
    alone_share: float
    """Of all requests: computed on their decode worker."""
    failed: int


def summarize(outcomes: Sequence[Outcome], objectives: Objectives) -> Summary:
    """Of a run in which every request has ended, in whatever way. A failed one counts as an endless wait."""
    duration = max(each.request.arrival_s for each in outcomes) or 1.0
    ttft = sorted(each.ttft_s if each.ttft_s is not None else float("inf") for each in outcomes)
    ended = [each for each in outcomes if each.finish_s is not None]
    return Summary(
        offered_per_s=len(outcomes) / duration,
        completed_per_s=sum(each.finish_s <= duration for each in ended if each.finish_s is not None) / duration,
        goodput_per_s=sum(map(objectives.met, outcomes)) / duration,
        ttft_p50_s=_rank(ttft, 0.5),
        ttft_p90_s=_rank(ttft, 0.9),
        tpot_s=_share(ended, lambda each: each.decode_s, lambda each: each.request.output_tokens - 1),
        cached_share=_share(outcomes, lambda each: each.cached_tokens, lambda each: each.request.prompt_tokens),
        alone_share=_share(outcomes, lambda each: each.prefill is None, lambda _: 1),
        failed=len(outcomes) - len(ended),
    )


def _share(outcomes: Sequence[Outcome], part: Callable[[Outcome], float], whole: Callable[[Outcome], int]) -> float:
    return sum(map(part, outcomes)) / max(1, sum(map(whole, outcomes)))


def _rank(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
