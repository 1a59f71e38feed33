"""Steps of a worker that are taken together, because all of them compute one token of the same sequences."""

from dataclasses import dataclass, field

from penstock.engine.scheduler import Plan
from penstock.protocol import StepTiming
from penstock.simulator.clock import Event
from penstock.simulator.kinds import StepTime

MAX_SPAN_STEPS = 64
"""Steps taken as one: their context grows by a few per mille, and its mean gives their length."""


@dataclass(slots=True)
class Span:
    """Steps of one plan, one after the other; each reads `decode_tokens` more tokens of context than the one before."""

    plan: Plan
    began_s: float
    step: StepTime
    prefill_tokens: int
    prefill_pairs: int
    decode_tokens: int
    context_tokens: int
    """Of the first step."""
    steps: int = 0
    step_s: float = 0.0
    """On average, which is all that the others' steps differ by."""
    end: Event = field(init=False)

    def take(self, steps: int) -> None:
        """From now on it has so many steps."""
        self.steps = steps
        self.step_s = self.step.seconds(
            self.prefill_tokens, self.prefill_pairs, self.decode_tokens, self.mean_context_tokens
        )

    @property
    def mean_context_tokens(self) -> float:
        return self.context_tokens + self.decode_tokens * (self.steps - 1) / 2

    @property
    def end_s(self) -> float:
        return self.began_s + self.steps * self.step_s

    @property
    def timing(self) -> StepTiming:
        """One of the steps, as a worker reports it."""
        context = int(self.mean_context_tokens)
        return StepTiming(self.prefill_tokens, self.decode_tokens, context, self.step_s, self.prefill_pairs)
