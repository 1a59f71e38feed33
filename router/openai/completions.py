"""/v1/completions: prompts as text or token ids, answers as plain text."""

from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.errors import RequestError
from penstock.router.answer_text import Delta, LoggedToken
from penstock.router.detokenizer import Vocabulary
from penstock.router.openai.call import Choice
from penstock.router.openai.logprobs import completion_logprobs
from penstock.router.openai.requests import CompletionRequest
from penstock.router.openai.responses import Completion, CompletionChoice, CompletionLogprobs, Usage
from penstock.router.openai.sampling import check_token

_encoder = msgspec.json.Encoder()


def num_prompts(request: CompletionRequest) -> int:
    """How many prompts there are, before they are looked at one by one."""
    prompt = request.prompt
    return 1 if isinstance(prompt, str) or (prompt and type(prompt[0]) is int) else len(prompt)


def prompts_of(request: CompletionRequest, vocab_size: int) -> list[str | list[int]]:
    """The prompts, each as text or token ids. Raises RequestError."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError("prompt is empty", field="prompt")
    if _are_ids(prompt):
        return [_checked_ids(prompt, vocab_size, "prompt")]
    prompts: list[str | list[int]] = []
    for index, part in enumerate(prompt):
        if isinstance(part, str):
            prompts.append(part)
        elif isinstance(part, list) and _are_ids(part):
            prompts.append(_checked_ids(part, vocab_size, f"prompt[{index}]"))
        else:
            raise RequestError(
                f"prompt[{index}] must be a string or a non-empty list of token ids", field=f"prompt[{index}]"
            )
    return prompts


def check_best_of(request: CompletionRequest) -> None:
    """Raises RequestError unless every sample is returned."""
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise RequestError("best_of must equal n: all samples are returned, none is ranked away", field="best_of")


class CompletionForm:
    """Writes text completions."""

    def __init__(self, request_id: str, created: int, vocabulary: Vocabulary, request: CompletionRequest) -> None:
        self._id = f"cmpl-{request_id}"
        self._created = created
        self._model = request.model
        self._vocabulary = vocabulary
        self._num_top = request.logprobs
        self._no_usage: Any = None if request.include_usage else msgspec.UNSET

    def opening(self, choice: Choice) -> bytes | None:  # noqa: ARG002 (completions begin with their text)
        return None

    def chunk(self, choice: Choice, delta: Delta) -> bytes:
        written = CompletionChoice(choice.index, delta.text, self._logprobs(delta.logged), delta.finish_reason)
        return _encoder.encode(Completion(self._id, self._created, self._model, [written], self._no_usage))

    def usage_chunk(self, usage: Usage) -> bytes:
        return _encoder.encode(Completion(self._id, self._created, self._model, [], usage))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        written = [
            CompletionChoice(choice.index, "".join(choice.parts), self._logprobs(choice.logged), choice.finish_reason)
            for choice in choices
        ]
        return _encoder.encode(Completion(self._id, self._created, self._model, written, usage))

    def _logprobs(self, logged: Sequence[LoggedToken]) -> CompletionLogprobs | None:
        return None if self._num_top is None else completion_logprobs(self._vocabulary, logged, self._num_top)


def _are_ids(parts: list[Any]) -> bool:
    return set(map(type, parts)) == {int}


def _checked_ids(tokens: list[int], vocab_size: int, field: str) -> list[int]:
    check_token(min(tokens), vocab_size, field)
    check_token(max(tokens), vocab_size, field)
    return tokens
