"""What the router has of one sample: the state a resume is made of. Pure; knows neither text nor connections."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.errors import WorkerLost
from penstock.protocol import Sample, SamplingParams, TokenLogprob, Tokens


@dataclass(slots=True, eq=False)
class Answer:
    """One sample's received output. `finish_reason` is set once no more of it is wanted, whoever decided that."""

    index: int
    seed: int
    output: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    is_cut: bool = False
    """The router ended it; the worker does not know and would go on."""

    def take(self, frame: Tokens) -> tuple[Sequence[int], Sequence[TokenLogprob]]:
        """The tokens of `frame` that are new here, and their log-probabilities (empty when not asked for).

        After a resume a worker may send positions again; they are dropped. Raises WorkerLost when positions are missing
        or when tokens follow the end.
        """
        known = len(self.output) - frame.position
        if known < 0:
            raise WorkerLost(f"tokens from position {frame.position} of sample {self.index}, at {len(self.output)}")
        tokens = frame.tokens[known:]
        self.output.extend(tokens)
        return tokens, frame.logprobs[known:]

    def end_by_output(self, sampling: SamplingParams, end_ids: frozenset[int]) -> None:
        """Sets the finish reason that follows from the output itself, in case the frame saying so was lost."""
        if self.finish_reason is None and self.output and self.output[-1] in end_ids:
            self.finish_reason = "stop"
        elif self.finish_reason is None and len(self.output) >= sampling.max_tokens:
            self.finish_reason = "length"

    def sample(self) -> Sample:
        """What a worker needs to begin or to go on."""
        return Sample(index=self.index, seed=self.seed, output=tuple(self.output))
