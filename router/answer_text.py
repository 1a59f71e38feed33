"""One answer's text as its tokens arrive: detokenized, cut at stop strings, log-probabilities kept in step.

A token's log-probability is let out when its text is, so both end at the same place when a stop string cuts them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.protocol import TokenLogprob
from penstock.router.detokenizer import Detokenizer, Vocabulary
from penstock.router.stop import StopStrings


@dataclass(frozen=True, slots=True)
class LoggedToken:
    """A token with its log-probability and where its text begins in the answer, in characters."""

    token_id: int
    logprob: TokenLogprob
    start: int


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event adds to the answer."""

    text: str = ""
    logged: tuple[LoggedToken, ...] = ()
    finish_reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.logged or self.finish_reason)


class AnswerText:
    """Push tokens, then finish. When `stopped`, a stop string was found and no more tokens are wanted."""

    def __init__(
        self, vocabulary: Vocabulary, *, end_ids: frozenset[int], stops: Sequence[str] = (), min_tokens: int = 0
    ) -> None:
        """`end_ids` have no text: end-of-sequence tokens and the request's stop tokens."""
        self._detokenizer = Detokenizer(vocabulary)
        self._stops = StopStrings(stops)
        self._end_ids = end_ids
        self._min_tokens = min_tokens
        self._pending: deque[LoggedToken] = deque()
        self._decoded = 0
        self._sent = 0
        self.num_tokens = 0

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def push(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob] = ()) -> Delta:
        """The text and log-probabilities that are certain after `tokens`; with "stop" when a stop string was found."""
        parts = []
        for index, token in enumerate(tokens):
            self.num_tokens += 1
            if token in self._end_ids:
                continue
            text = self._detokenizer.push(token)
            if logprobs:
                self._pending.append(LoggedToken(token, logprobs[index], self._decoded))
            self._decoded += len(text)
            if text:
                parts.append(self._stops.push(text, may_stop=self.num_tokens > self._min_tokens))
            if self.stopped:
                return self._delta(parts, "stop")
        return self._delta(parts, None)

    def finish(self, reason: str) -> Delta:
        """The rest, now that the last token has come."""
        parts = [self._stops.push(self._detokenizer.finish())]
        if not self.stopped:
            parts.append(self._stops.finish())
        return self._delta(parts, "stop" if self.stopped else reason)

    def _delta(self, parts: list[str], reason: str | None) -> Delta:
        text = "".join(parts)
        self._sent += len(text)
        logged = []
        while self._pending and self._is_out(reason):
            logged.append(self._pending.popleft())
        return Delta(text, tuple(logged), reason)

    def _is_out(self, reason: str | None) -> bool:
        """Whether the first pending token's text has been sent, up to its last character or, at the end, its first."""
        if reason is not None:
            return self._pending[0].start < self._sent or not self.stopped
        end = self._pending[1].start if len(self._pending) > 1 else self._decoded
        return end <= self._sent
