"""A plain client of the OpenAI chat endpoint, for `penstock chat` and `penstock demo`: standard library only."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any

from penstock.errors import PenstockError

TIMEOUT_S = 60.0
"""Longest silence within an answer."""

Message = Mapping[str, str]


class AskError(PenstockError):
    """The server refused, failed, or broke off."""


@dataclass(frozen=True)
class Answer:
    """A whole answer: its text, why it ended, token counts, and the response's headers in lower case."""

    text: str
    finish_reason: str
    usage: Mapping[str, Any]
    headers: Mapping[str, str]


def ask(
    url: str, model: str, messages: Sequence[Message], show: Callable[[str], object], *, key: str = "", **options: Any
) -> Answer:
    """Streams the answer to a conversation, giving each piece of text to `show`. Raises AskError."""
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
    text: list[str] = []
    finish_reason = ""
    usage: dict[str, Any] = {}
    try:
        with _open(f"{url}/v1/chat/completions", body, key) as response:
            headers = {name.lower(): value for name, value in response.getheaders()}
            for chunk in _events(response):
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    if piece := choice["delta"].get("content"):
                        text.append(piece)
                        show(piece)
                    finish_reason = choice.get("finish_reason") or finish_reason
    except (OSError, HTTPException) as error:
        raise AskError(f"{url} broke off: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise AskError(f"{url} does not speak OpenAI's protocol: {error!r}") from error
    return Answer("".join(text), finish_reason, usage, headers)


def first_model(url: str, key: str = "") -> str:
    """The model that the server names first. Raises AskError."""
    try:
        with _open(f"{url}/v1/models", None, key) as response:
            return str(json.load(response)["data"][0]["id"])
    except (OSError, HTTPException) as error:
        raise AskError(f"{url} does not answer: {error}; is `penstock up` running?") from error
    except (ValueError, LookupError, TypeError) as error:
        raise AskError(f"{url}/v1/models is no list of models") from error


def _open(url: str, body: Mapping[str, Any] | None, key: str) -> HTTPResponse:
    host = urllib.parse.urlsplit(url).hostname or ""
    local = host == "localhost" or host.startswith("127.") or host == "::1"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({} if local else None))
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, data, headers)
    try:
        response: HTTPResponse = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            raise AskError(_message(error.read()) or f"HTTP {error.code}") from error
    return response


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event up to `[DONE]`. Raises AskError on an error event or a cut."""
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            raise AskError(_message(data) or "the server failed")
        yield event
    raise AskError("the answer was cut off")


def _message(body: bytes) -> str:
    """The message of an OpenAI error body, or ""."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return ""
