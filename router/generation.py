"""One prompt's way through the cluster: placed, streamed, and placed again when a worker fails.

This is the only place that decides about failure (workers never retry). A request that was placed again carries all
output ids received so far, so that the client sees one unbroken stream. It knows token ids only.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeAlias

import msgspec

from penstock.errors import (
    DeadlineExceeded,
    Overloaded,
    PrefillDied,
    PrefillLost,
    PrefillRefused,
    RetryableError,
    Stopping,
    TransferError,
    WorkerLost,
)
from penstock.hop import open_hop
from penstock.protocol import (
    Done,
    Error,
    Finished,
    Frame,
    GenerateRequest,
    SamplingParams,
    TokenLogprob,
    Tokens,
)
from penstock.router.answer import Answer
from penstock.router.flow.arrival import Arrival
from penstock.router.merge import merge
from penstock.router.placed import Placed
from penstock.router.placer import Placer
from penstock.router.trial import Trial
from penstock.telemetry.trace import current

_KINDS: dict[str, type[RetryableError]] = {
    kind.code: kind
    for kind in (
        PrefillDied,
        PrefillLost,
        PrefillRefused,
        TransferError,
        Overloaded,
        WorkerLost,
        DeadlineExceeded,
        Stopping,
    )
}
_CLOCKS_S = 1.0
"""A worker's deadline passes no earlier than so long before the router's, which it was told."""
_MAX_LINE_BYTES = 2**20
"""Longest frame of an answer: some tokens, with their log-probabilities."""


class Started(msgspec.Struct, frozen=True):
    """A decode worker has taken the request. Comes again after every re-placement."""

    generation: "Generation"
    decode: str
    prefill: str | None


class Output(msgspec.Struct, frozen=True):
    """New tokens of one answer; `choice` counts over all prompts of the API request."""

    choice: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


class Ended(msgspec.Struct, frozen=True):
    """One answer is complete."""

    choice: int
    reason: str


Event: TypeAlias = Started | Output | Ended


class Generation:
    """All answers to one prompt. Iterate `events` once."""

    def __init__(
        self,
        placer: Placer,
        *,
        request_id: str,
        prompt: list[int],
        sampling: SamplingParams,
        end_ids: frozenset[int],
        vocab_size: int,
        seeds: list[int],
        first_choice: int = 0,
        salt: str = "",
        priority: int = 0,
        deadline: float,
        arrival: Arrival,
    ) -> None:
        """`end_ids` are the tokens that end an answer; `deadline` is on the event loop's clock.

        `priority` orders the requests of one tenant; smaller is first.
        """
        self.prompt = prompt
        self.cached_tokens: int | None = None
        """Prompt tokens nobody had to compute, by the first run's account; None while unknown."""
        self._placer = placer
        self._sampling = sampling
        self._end_ids = end_ids
        self._vocab_size = vocab_size
        self._first_choice = first_choice
        self._deadline = deadline
        self._arrival = arrival
        self._answers = [Answer(index, seed) for index, seed in enumerate(seeds)]
        self._request = GenerateRequest(
            request_id=request_id,
            prompt=tuple(prompt),
            sampling=sampling,
            samples=tuple(answer.sample() for answer in self._answers),
            salt=salt,
            priority=priority,
        )

    def end(self, choice: int) -> None:
        """The router needs no more of this answer (a stop string). When all have ended, the worker is let go."""
        answer = self._answers[choice - self._first_choice]
        answer.finish_reason, answer.is_cut = "stop", True

    async def place(self, num_answers: int, trial: Trial) -> Placed:
        """Where it would run, booked, for who has somebody else run it. Raises as Placer.place does."""
        return await self._placer.place(self._request, num_answers, trial, self._deadline, self._arrival)

    def events(self) -> AsyncGenerator[Event, None]:
        """Raises RequestError when a worker refuses the request, RetryableError when no placement worked out."""
        return self._run(self._answers, Trial())

    async def _run(self, answers: list[Answer], trial: Trial) -> AsyncGenerator[Event, None]:
        while True:
            output = answers[0].output if len(answers) == 1 else ()
            with current().span("place") as span:
                placed = await self._placer.place(
                    self._request, len(answers), trial, self._deadline, self._arrival, output
                )
                span.note(decode=placed.decode, prefill=placed.prefill or "", attempt=trial.attempts)
            try:
                async with aclosing(self._attempt(answers, placed)) as events:
                    async for event in events:
                        yield event
                return
            except RetryableError as error:
                num_output = sum(len(answer.output) for answer in answers)
                complete = [answer for answer in answers if answer.ends_by_output(self._sampling, self._end_ids)]
                answers = [answer for answer in answers if answer.finish_reason is None]
                try:
                    self._placer.failed(placed, trial, error, num_output=num_output)
                except RetryableError:
                    if answers:  # else nothing is missing
                        raise
            finally:
                self._placer.ended(placed)
            for answer in complete:
                yield Ended(self._first_choice + answer.index, str(answer.finish_reason))
            if not answers:
                return
            if len(answers) > 1 and any(answer.output for answer in answers):
                async with aclosing(merge([self._run([answer], trial.copy()) for answer in answers])) as merged:
                    async for event in merged:
                        yield event
                return

    async def _attempt(self, answers: list[Answer], placed: Placed) -> AsyncGenerator[Event, None]:
        """One call to one decode worker, to its last frame or to a RetryableError."""
        by_index = {answer.index: answer for answer in answers}
        url, body = f"{placed.decode}/generate", self._body(answers, placed)
        async with open_hop(self._placer.session, url, body, max_line_bytes=_MAX_LINE_BYTES) as hop:
            self._placer.expectations.accepted(placed, hop.accepted.generation)
            yield Started(self, placed.decode, placed.prefill)
            while not isinstance(frame := await hop.next(), Done):
                event = self._event(frame, by_index, placed)
                try:
                    if event is not None:
                        yield event
                finally:
                    if isinstance(frame, Tokens):  # what is learned from a token is learned when it has left
                        self._placer.computed(placed, frame.cached_tokens)
                if all(answer.finish_reason for answer in answers) and any(answer.is_cut for answer in answers):
                    self._placer.expectations.learned(placed, [answer.output for answer in answers])
                    return  # leaving closes the connection, which cancels what the worker would still generate
            self._done(frame, placed, answers)
        if any(answer.finish_reason is None for answer in answers):
            raise WorkerLost(f"{placed.decode} was done before every answer was")

    def _event(self, frame: Frame, by_index: dict[int, Answer], placed: Placed) -> Event | None:
        if isinstance(frame, Error):
            raise self._failure(frame, placed)
        if not isinstance(frame, (Tokens, Finished)):
            raise WorkerLost(f"{placed.decode} sent an unexpected {type(frame).__name__} frame")
        answer = by_index.get(frame.sample)
        if answer is None:
            raise WorkerLost(f"{placed.decode} sent sample {frame.sample}, which was not asked for")
        if answer.finish_reason is not None:
            return None
        if isinstance(frame, Finished):
            answer.finish(frame.reason, self._sampling, self._end_ids)
            return Ended(self._first_choice + answer.index, frame.reason)
        if frame.cached_tokens is not None and self.cached_tokens is None:
            self.cached_tokens = min(frame.cached_tokens, len(self.prompt))
        tokens, logprobs = answer.take(frame, self._sampling, self._vocab_size)
        placed.reservation.produced(len(tokens))
        placed.num_output += len(tokens)
        return Output(self._first_choice + answer.index, tuple(tokens), tuple(logprobs)) if tokens else None

    def _done(self, frame: Done, placed: Placed, answers: list[Answer]) -> None:
        self._placer.expectations.finished(placed, frame)
        if self.cached_tokens is None and not placed.is_resume:
            self.cached_tokens = min(frame.cached_tokens, len(self.prompt))
        self._placer.expectations.learned(placed, [answer.output for answer in answers])

    def _body(self, answers: list[Answer], placed: Placed) -> GenerateRequest:
        remaining_s = self._deadline - asyncio.get_running_loop().time()
        if remaining_s <= 0:
            raise DeadlineExceeded("the request's deadline passed before it could be placed")
        placed.is_resume = any(answer.output for answer in answers)
        return msgspec.structs.replace(
            self._request,
            samples=tuple(answer.sample() for answer in answers),
            timeout_s=remaining_s,
            prefill=placed.prefill,
            priority=placed.priority,
            source=placed.source,
            as_of=placed.as_of,
            source_as_of=placed.source_as_of,
        )

    def _failure(self, frame: Error, placed: Placed) -> RetryableError:
        """The error that a stream's last frame tells of."""
        remaining_s = self._deadline - asyncio.get_running_loop().time()
        if frame.code == DeadlineExceeded.code and remaining_s > _CLOCKS_S:
            return WorkerLost(f"{placed.decode} gave up {remaining_s:.3g} s before the deadline: {frame.message}")
        return _KINDS.get(frame.code, RetryableError)(frame.message, retry_after_s=frame.retry_after_s)
