"""One HTTP request of a gateway: what ext-proc tells of it as ASGI's events, and what is decided as ext-proc's answers.

Bodies come and go in pieces, in both directions (FULL_DUPLEX_STREAMED): the gateway keeps nothing, so whatever it sends
is sent back to it. Up to the decision everything is kept here, since its answers must begin with the headers.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import unquote

from starlette.types import Message, Scope

from penstock.router.gateway.messages import FULL_DUPLEX_STREAMED, NONE, ProcessingResponse, kind_of, mutation
from penstock.router.http import ClientGone

DESTINATION = "x-gateway-destination-endpoint"
"""Header and metadata by which the gateway learns where the request goes (endpoint picker protocol, 1.0)."""
_DESTINATIONS = "envoy.lb"
_SUBSET, _SUBSETS = f"{DESTINATION}-subset", "envoy.lb.subset_hint"
_PIECE_BYTES = 62_000
"""Envoy advises less than 64 KiB."""
_BY_THE_GATEWAY = (b"content-length", b"connection")
"""Headers that it writes itself."""

_PATH_END = re.compile("[?#]")

Header = tuple[bytes, bytes]


class Exchange:
    """From the request's headers to the end of its answer."""

    def __init__(self, first: Any, read: Callable[[], Awaitable[Any]], write: Callable[[Any], Awaitable[None]]) -> None:
        """`first` is the message with the headers; `read` gives the next one, None at the end, and `write` raises
        ClientGone when nobody listens any more."""
        self._read = read
        self._write = write
        self._headers = first.request_headers
        self.scope = _scope_of(self._headers)
        self._subset = _subset_of(first)
        modes = first.protocol_config if first.HasField("protocol_config") else None
        self._response_mode = modes.response_body_mode if modes is not None else FULL_DUPLEX_STREAMED
        self._body: list[bytes] = []
        self._is_whole = False
        self._has_trailers = False
        self._refusal: tuple[int, list[Header]] = (0, [])
        self.is_decided = False
        self.gone = asyncio.Event()
        """The gateway wants no answer any more."""

    async def receive(self) -> Message:
        """ASGI: the request's body, piece by piece; then, when that is so, that the client has gone."""
        if self._is_whole or self.is_decided:
            await self.gone.wait()
        elif self._headers.end_of_stream:
            self._is_whole = True
            return {"type": "http.request", "body": b"", "more_body": False}
        elif (message := await self._read()) is None:
            self.gone.set()
        else:
            self._has_trailers = message.HasField("request_trailers")
            self._is_whole = self._has_trailers or message.request_body.end_of_stream
            self._body.append(message.request_body.body)
            return {"type": "http.request", "body": self._body[-1], "more_body": not self._is_whole}
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI: an answer that no worker gives. Once the request has gone on, there is nobody to read it."""
        if self.is_decided:
            return
        if message["type"] == "http.response.start":
            headers = [(name, value) for name, value in message["headers"] if name not in _BY_THE_GATEWAY]
            self._refusal = (message["status"], headers)
            return
        self.is_decided = True
        status, headers = self._refusal
        immediate = {"status": {"code": status}, "headers": mutation(headers), "body": message["body"]}
        await self._write(ProcessingResponse(immediate_response=immediate))
        self.gone.set()

    def allows(self, endpoint: str) -> bool:
        """Whether the gateway takes it."""
        return self._subset is None or endpoint in self._subset

    async def pick(self, endpoint: str, headers: Iterable[Header] = (), remove: Iterable[str] = ()) -> None:
        """Sends the request on, with more headers and without those in `remove`."""
        self.is_decided = True
        changed = mutation([(DESTINATION.encode(), endpoint.encode()), *headers], remove)
        response = ProcessingResponse(
            request_headers={"response": {"header_mutation": changed, "clear_route_cache": True}}
        )
        response.dynamic_metadata.update({_DESTINATIONS: {DESTINATION: endpoint}})
        await self._write(response)
        body = b"".join(self._body)
        self._body.clear()
        if not self._headers.end_of_stream and (body or self._is_whole):
            ends = self._is_whole and not self._has_trailers
            for start in range(0, len(body), _PIECE_BYTES) or [0]:
                stop = start + _PIECE_BYTES
                await self._give_back("request_body", body[start:stop], end=ends and stop >= len(body))
        if self._has_trailers:
            await self._write(ProcessingResponse(request_trailers={}))

    async def rest(self, headers: Iterable[Header] = ()) -> AsyncGenerator[tuple[int, bytes], None]:
        """Passes on what is still to come, up to the end of the answer, to which `headers` are added.

        Yields (0, piece of the answer's body), and before that (its status, b""). Raises ClientGone.
        """
        while (message := await self._read()) is not None:
            kind = kind_of(message)
            if kind == "response_headers":
                changed = {"response": {"header_mutation": mutation(headers)}}
                await self._write(ProcessingResponse(response_headers=changed))
                yield _status_of(message.response_headers), b""
                if message.response_headers.end_of_stream or self._response_mode == NONE:
                    return
            elif kind in ("request_body", "response_body"):
                part = getattr(message, kind)
                await self._give_back(kind, part.body, end=part.end_of_stream)
                if kind == "response_body":
                    yield 0, part.body
                    if part.end_of_stream:
                        return
            elif kind:
                await self._write(ProcessingResponse(**{kind: {}}))
                if kind == "response_trailers":
                    return
        raise ClientGone("the gateway has ended the request")

    async def _give_back(self, kind: str, piece: bytes, *, end: bool) -> None:
        changed = {"streamed_response": {"body": piece, "end_of_stream": end}}
        plain = kind == "response_body" and self._response_mode != FULL_DUPLEX_STREAMED
        await self._write(ProcessingResponse(**{kind: {"response": {} if plain else {"body_mutation": changed}}}))


def _pairs(headers: Any) -> list[Header]:
    return [(one.key.lower().encode(), one.raw_value or one.value.encode()) for one in headers.headers.headers]


def _scope_of(request_headers: Any) -> Scope:
    """What an ASGI application knows of the request. The peer is not known, so it is not of this machine."""
    pairs = _pairs(request_headers)
    pseudo = {name: value.decode("latin-1") for name, value in pairs if name.startswith(b":")}
    return {
        "type": "http",
        "method": pseudo.get(b":method", ""),
        "path": unquote(_PATH_END.split(pseudo.get(b":path", ""), maxsplit=1)[0]),  # as the endpoint will read it
        "headers": [(name, value) for name, value in pairs if not name.startswith(b":")],
    }


def _status_of(response_headers: Any) -> int:
    status = dict(_pairs(response_headers)).get(b":status", b"")
    return int(status) if status.isdigit() else 0


def _subset_of(first: Any) -> frozenset[str] | None:
    """Some gateways give a list, some one text with commas."""
    for entry in first.metadata_context.filter_metadata:
        if entry.key == _SUBSETS and _SUBSET in entry.value.fields:
            named = entry.value.fields[_SUBSET]
            texts = [named.string_value, *(one.string_value for one in named.list_value.values)]
            return frozenset(part.strip() for text in texts for part in text.split(",") if part.strip())
    return None
