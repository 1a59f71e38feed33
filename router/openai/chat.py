"""/v1/chat/completions: from messages to a prompt, and from tokens to chat chunks."""

from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.errors import RequestError
from penstock.router.answer_text import Delta
from penstock.router.detokenizer import Vocabulary
from penstock.router.model import ServedModel
from penstock.router.openai.call import Choice
from penstock.router.openai.logprobs import chat_logprobs
from penstock.router.openai.messages import checked_messages, checked_tools
from penstock.router.openai.requests import ChatRequest
from penstock.router.openai.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Usage,
)

_encoder = msgspec.json.Encoder()


def render_prompt(request: ChatRequest, model: ServedModel) -> str:
    """The conversation as text. Raises RequestError."""
    if model.chat_template is None:
        raise RequestError(f"the model {model.name!r} has no chat template; use /v1/completions", field="messages")
    messages = checked_messages(request.messages, model.chat_template.mentions)
    tools = checked_tools(request.tools)
    if request.tool_choice not in (None, "auto", "none"):
        raise RequestError(
            "tool_choice can be 'auto' or 'none'; forcing a call is not supported yet", field="tool_choice"
        )
    variables: dict[str, Any] = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", request.reasoning_effort)
    return model.chat_template.render(
        messages,
        None if request.tool_choice == "none" else tools,
        add_generation_prompt=request.add_generation_prompt is not False,
        variables=variables,
    )


def max_tokens_of(request: ChatRequest) -> int | None:
    """`max_completion_tokens`, or its older name."""
    return request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens


def max_tokens_field(request: ChatRequest) -> str:
    """Which of the two names the client used."""
    return "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"


def logprobs_of(request: ChatRequest) -> int | None:
    """How many alternatives to report, None for no log-probabilities."""
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", field="top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


class ChatForm:
    """Writes chat completions."""

    def __init__(self, request_id: str, created: int, vocabulary: Vocabulary, request: ChatRequest) -> None:
        self._id = f"chatcmpl-{request_id}"
        self._created = created
        self._model = request.model
        self._vocabulary = vocabulary
        self._num_top = logprobs_of(request)
        self._no_usage: Any = None if request.include_usage else msgspec.UNSET

    def opening(self, choice: Choice) -> bytes | None:
        return self._chunk(ChatChunkChoice(choice.index, ChatDelta(role="assistant", content="")))

    def chunk(self, choice: Choice, delta: Delta) -> bytes:
        body = ChatDelta(content=delta.text) if delta.text else ChatDelta()
        return self._chunk(ChatChunkChoice(choice.index, body, self._logprobs(delta.logged), delta.finish_reason))

    def usage_chunk(self, usage: Usage) -> bytes:
        return _encoder.encode(ChatChunk(self._id, self._created, self._model, [], usage))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        written = [
            ChatChoice(
                choice.index, ChatMessage("".join(choice.parts)), self._logprobs(choice.logged), choice.finish_reason
            )
            for choice in choices
        ]
        return _encoder.encode(ChatCompletion(self._id, self._created, self._model, written, usage))

    def _chunk(self, choice: ChatChunkChoice) -> bytes:
        return _encoder.encode(ChatChunk(self._id, self._created, self._model, [choice], self._no_usage))

    def _logprobs(self, logged: Sequence[Any]) -> ChatLogprobs | None:
        return None if self._num_top is None else chat_logprobs(self._vocabulary, logged, self._num_top)
