"""What the router has of one sample: the state a resume is made of. Pure; knows neither text nor connections."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.errors import WorkerLost
from penstock.protocol import FinishReason, Sample, SamplingParams, TokenLogprob, Tokens


@dataclass(slots=True, eq=False)
class Answer:
    """One sample's received output. `finish_reason` is set once no more of it is wanted, whoever decided that."""

    index: int
    seed: int
    output: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    is_cut: bool = False
    """The router ended it; the worker does not know and would go on."""

    def take(
        self, frame: Tokens, sampling: SamplingParams, vocab_size: int
    ) -> tuple[Sequence[int], Sequence[TokenLogprob]]:
        """The tokens of `frame` that are new here, and their log-probabilities (empty when not asked for).

        After a resume a worker may send positions again; they are dropped. Raises WorkerLost when positions or
        log-probabilities are missing, for a token that the model does not have, and when there is more than `sampling`
        asks for.
        """
        known = len(self.output) - frame.position
        if known < 0:
            raise WorkerLost(f"tokens from position {frame.position} of sample {self.index}, at {len(self.output)}")
        if max(frame.tokens, default=0) >= vocab_size:
            raise WorkerLost(f"token {max(frame.tokens)} of a vocabulary of {vocab_size}")
        if len(frame.logprobs) != (0 if sampling.logprobs is None else len(frame.tokens)):
            raise WorkerLost(f"{len(frame.logprobs)} log-probabilities with {len(frame.tokens)} tokens")
        tokens = frame.tokens[known:]
        if len(self.output) + len(tokens) > sampling.max_tokens:
            raise WorkerLost(f"more than the {sampling.max_tokens} tokens that sample {self.index} may have")
        self.output.extend(tokens)
        return tokens, frame.logprobs[known:]

    def finish(self, reason: FinishReason, sampling: SamplingParams, end_ids: frozenset[int]) -> None:
        """The worker says that it ended. Raises WorkerLost where it cannot have; a worker may know end tokens that this
        router does not, but for a request that ignores them there is none."""
        if reason == "length":
            may_be = len(self.output) >= sampling.max_tokens
        else:
            may_be = bool(self.output) and (self.output[-1] in end_ids or not sampling.ignore_eos)
        if not may_be:
            raise WorkerLost(f"sample {self.index} cannot have ended by {reason!r} after {len(self.output)} tokens")
        self.finish_reason = reason

    def ends_by_output(self, sampling: SamplingParams, end_ids: frozenset[int]) -> bool:
        """Sets the finish reason that follows from the output itself, in case the frame saying so was lost."""
        if self.finish_reason is not None:
            return False
        if self.output and self.output[-1] in end_ids:
            self.finish_reason = "stop"
        elif len(self.output) >= sampling.max_tokens:
            self.finish_reason = "length"
        return self.finish_reason is not None

    def sample(self) -> Sample:
        """What a worker needs to begin or to go on."""
        return Sample(index=self.index, seed=self.seed, output=tuple(self.output))
