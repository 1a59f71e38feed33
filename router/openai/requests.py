"""The bodies of OpenAI's API as this server takes them: which fields exist, their types and ranges.

Three kinds of fields: supported ones; those of type Any that change nothing a client could rely on, accepted without
effect; `_UNSUPPORTED`, refused with a sentence unless they hold the value that asks for nothing. Any other field is
refused with the nearest valid name: a misspelt `temprature` must not silently give another answer.
"""

import gc
import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct

from penstock.errors import RequestError
from penstock.hop import NO_JSON
from penstock.router.openai.errors import unknown_field
from penstock.router.openai.faults import find_fault

_INT32 = 2**31 - 1
Count = Annotated[int, Meta(ge=1, le=_INT32)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
MAX_MESSAGES = 16_384
MAX_TOOLS = 1024
MAX_TEMPLATE_VARIABLES = 64
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_SALT_CHARS = 1024


class StreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """`include_usage` adds a last chunk with the usage. Obfuscation is not needed here and never added."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ApiRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints share. Null means the default everywhere, as in OpenAI's API.

    Workers refuse longer `logit_bias` and `stop_token_ids` too: every entry costs each of their steps.
    """

    model: str
    max_tokens: Count | None = None
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None

    # Beyond OpenAI (the SDK's `extra_body`), under the names vLLM gave them.
    top_k: Annotated[int, Meta(ge=-1, le=_INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    stop_token_ids: Annotated[list[int], Meta(max_length=256)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=_INT32)] | None = None
    cache_salt: Annotated[str, Meta(max_length=MAX_SALT_CHARS)] | None = None
    priority: Annotated[int, Meta(ge=-_INT32, le=_INT32)] | None = None

    user: Any = UNSET
    metadata: Any = UNSET
    service_tier: Any = UNSET
    prompt_cache_key: Any = UNSET
    prompt_cache_retention: Any = UNSET
    safety_identifier: Any = UNSET
    store: Any = UNSET
    response_format: Any = UNSET

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(ApiRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=MAX_TEMPLATE_VARIABLES)] | None = None
    add_generation_prompt: bool | None = None

    parallel_tool_calls: Any = UNSET
    prediction: Any = UNSET
    verbosity: Any = UNSET
    audio: Any = UNSET
    function_call: Any = UNSET
    functions: Any = UNSET
    modalities: Any = UNSET
    web_search_options: Any = UNSET


class CompletionRequest(ApiRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of /v1/completions."""

    prompt: str | list[Any]
    """Text, token ids, or a list of either."""
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Count | None = None
    echo: Any = UNSET
    suffix: Any = UNSET


_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "response_format": (({"type": "text"},), "structured output is not supported yet; the answer is plain text"),
    "store": ((False,), "this server stores no completions"),
    "audio": ((), "the model answers in text only"),
    "modalities": ((["text"],), "the model answers in text only"),
    "function_call": (("auto", "none"), "use tools and tool_choice, which replaced it"),
    "functions": (([],), "use tools, which replaced it"),
    "web_search_options": ((), "this server does not search the web"),
    "echo": ((False,), "the prompt is not repeated in the answer; prepend it yourself"),
    "suffix": (("",), "text is only generated after the prompt, not before a suffix"),
}
"""Per field: the values besides null that ask for nothing, and why others are refused."""

R = TypeVar("R", bound=ApiRequest)


def decode_request(body: bytes, kind: type[R]) -> R:
    """The parsed and checked body. Raises RequestError naming the field."""
    gc.disable()  # else a body of a million lists is traversed again and again while it is read: 0.3 s instead of 0.1 s
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _field_error(str(error), kind) from error
    except NO_JSON as error:
        field, reason = find_fault(body) or ("", str(error))
        where = f": {field}" if field else ""
        what = "nests too deeply" if isinstance(error, RecursionError) else "is not valid JSON in UTF-8"
        message = f"the request body {what}{where}: {reason}"
        raise RequestError(message, field=field or None) from error
    finally:
        gc.enable()
    for field, (neutral, reason) in _UNSUPPORTED.items():
        value = getattr(request, field, UNSET)
        if value is not UNSET and value is not None and value not in neutral:
            raise RequestError(f"{field}={_short(value)} is not supported: {reason}", field=field, code="unsupported")
    return request


def stop_strings(request: ApiRequest) -> tuple[str, ...]:
    """The `stop` field as a tuple. Raises RequestError."""
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > MAX_STOPS:
        raise RequestError(f"stop may hold at most {MAX_STOPS} strings, not {len(stops)}", field="stop")
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise RequestError(f"a stop string has 1 to {MAX_STOP_CHARS} characters, not {len(stop)}", field="stop")
    return tuple(stops)


def _field_error(message: str, kind: type[Struct]) -> RequestError:
    """Turns msgspec's message, "Expected `int`, got `str` - at `$.messages[0].content`", into OpenAI's form."""
    reason, _, path = message.partition(" - at `")
    field = path.rstrip("`").removeprefix("$").removeprefix(".").replace("[...]", "") or None
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason)
    if unknown:
        names = StreamOptions.__struct_fields__ if field == "stream_options" else kind.__struct_fields__
        return unknown_field(unknown[1], field, names)
    missing = re.fullmatch(r"Object missing required field `(.*)`", reason)
    if missing:
        name = f"{field}.{missing[1]}" if field else missing[1]
        return RequestError(f"the field {name!r} is required", field=name, code="missing_required_parameter")
    return RequestError(f"{field or 'the request body'}: {reason}", field=field, code="invalid_value")


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."
