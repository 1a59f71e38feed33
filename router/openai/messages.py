"""Chat messages as clients send them, checked and brought into the form chat templates expect. Pure."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from penstock.errors import RequestError
from penstock.router.openai.errors import unknown_field

_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
_ECHOED = frozenset({"refusal", "annotations", "parsed", "reasoning", "reasoning_content", "thinking"})
"""What answers and SDKs add to an assistant's message. It comes back with the history; most templates leave it out."""
_HINTS = frozenset({"cache_control", "prompt_cache_breakpoint"})
"""Where other servers should cache, from agents and SDKs: here every prefix is cached, the answer is the same."""
_PART_FIELDS = frozenset({"type", "text"})
_UNSUPPORTED = {
    "audio": "the model reads text only",
    "function_call": "use tool_calls, which replaced it",
}


def checked_messages(messages: list[dict[str, Any]], is_read: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Messages with text content and tool arguments as objects. Raises RequestError naming the part.

    A field that is neither OpenAI's nor one of `is_read`, those of the model's chat template, is refused: what nobody
    reads must not seem to count. Null asks for nothing, in any field.
    """
    if not messages:
        raise RequestError("messages is empty; a conversation has at least one message", field="messages")
    for index, message in enumerate(messages):
        _check_fields(message, f"messages[{index}]", is_read)
    return [_checked(message, f"messages[{index}]") for index, message in enumerate(messages)]


def checked_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools with a named function each; None when there are none. Raises RequestError."""
    for index, tool in enumerate(tools or []):
        field = f"tools[{index}]"
        if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise RequestError(f'{field} must be {{"type": "function", "function": {{...}}}}', field=field)
        if not isinstance(tool["function"].get("name"), str):
            raise RequestError(f"{field}.function.name must be a string", field=f"{field}.function.name")
    return tools or None


def _check_fields(message: dict[str, Any], field: str, is_read: Callable[[str], bool]) -> None:
    for name, value in message.items():
        if name in _FIELDS | _ECHOED | _HINTS or value is None or is_read(name):
            continue
        if name in _UNSUPPORTED:
            reason = f"{field}.{name} is not supported: {_UNSUPPORTED[name]}"
            raise RequestError(reason, field=f"{field}.{name}", code="unsupported")
        raise unknown_field(name, field, _FIELDS | _ECHOED)


def _checked(message: dict[str, Any], field: str) -> dict[str, Any]:
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise RequestError(f"{field}.role must be a string such as 'user'", field=f"{field}.role")
    content = message.get("content")
    if isinstance(content, list):
        message = {**message, "content": _joined(content, f"{field}.content")}
    elif content is None:
        if message["role"] != "assistant":
            raise RequestError(f"{field}.content is required for role {message['role']!r}", field=f"{field}.content")
    elif not isinstance(content, str):
        raise RequestError(f"{field}.content must be text or a list of parts", field=f"{field}.content")
    if message.get("tool_calls"):
        message = {**message, "tool_calls": _with_arguments(message["tool_calls"], f"{field}.tool_calls")}
    return message


def _joined(parts: list[Any], field: str) -> str:
    """Text parts as one text, a line each: many templates know only text."""
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise RequestError(
                f"{field}[{index}] has type {kind!r}, but this model reads text only", field=f"{field}[{index}]"
            )
        for name, value in part.items():
            if name not in _PART_FIELDS | _HINTS and value is not None:
                raise unknown_field(name, f"{field}[{index}]", _PART_FIELDS)
        if not isinstance(part.get("text"), str):
            raise RequestError(f"{field}[{index}].text must be a string", field=f"{field}[{index}].text")
        texts.append(part["text"])
    return "\n".join(texts)


def _with_arguments(calls: Any, field: str) -> list[dict[str, Any]]:
    """Tool calls whose arguments are objects: the API sends them as JSON text, templates print them with `tojson`."""
    if not isinstance(calls, list):
        raise RequestError(f"{field} must be a list", field=field)
    parsed = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError(f"{field}[{index}].function must be an object with a name", field=f"{field}[{index}]")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            with suppress(msgspec.DecodeError, RecursionError):  # a model's malformed call is sent back as it was
                arguments = msgspec.json.decode(arguments)
        parsed.append({**call, "function": {**function, "arguments": arguments}})
    return parsed
