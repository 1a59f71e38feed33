"""Bodies in, frames out: what every route of a worker shares. Knows HTTP and msgspec, nothing of the engine."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.errors import Overloaded, RequestError
from penstock.hop import NO_JSON, Refusal
from penstock.protocol import Done, Error, encode_line

T = TypeVar("T")

log = logging.getLogger(__name__)

WRITE_TIMEOUT_S = 10.0
"""A caller that accepts no byte for so long is cut off."""

Write: TypeAlias = Callable[[Sequence[msgspec.Struct]], Awaitable[None]]


async def read_body(request: Request, kind: type[T], max_bytes: int) -> T:
    """The request's JSON body as `kind`. Raises RequestError, with the field where it is known."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise RequestError(f"the body is longer than {max_bytes} bytes", code="body_too_large", status=413)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise RequestError(message, field=_field(path, message)) from error
    except NO_JSON as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from error


def refusal(error: RequestError | Overloaded) -> Response:
    """The 4xx or 503 answer for `error`."""
    if isinstance(error, RequestError):
        body = Refusal(message=str(error), code=error.code or "invalid_request", field=error.field)
        return json_response(body, error.status)
    return json_response(Refusal(message=str(error), code=error.code, retry_after_s=1.0), 503)


def json_response(body: object, status: int = 200) -> Response:
    """`body` as JSON."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")


class FrameResponse(Response):
    """A stream of JSON lines that ends at once, wherever `produce` stands, when the caller disconnects.

    (Starlette's StreamingResponse takes a generator, whose clean-up would wait for the garbage collector when the
    caller leaves between two frames.)
    """

    media_type = "application/x-ndjson"

    def __init__(self, produce: Callable[[Write], Awaitable[None]]) -> None:
        """`produce` writes batches of frames; each batch leaves in one piece. When it returns the body ends cleanly.

        Done and Error end the body themselves, in that very piece: the caller, which reads no further, has then seen
        the end of the answer, and can use the connection again.
        """
        super().__init__()
        del self.headers["content-length"]
        self._produce = produce

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

        has_ended = False

        async def write(frames: Sequence[msgspec.Struct]) -> None:
            nonlocal has_ended
            data = b"".join(map(encode_line, frames))
            is_last = isinstance(frames[-1], Done | Error)
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await send({"type": "http.response.body", "body": data, "more_body": not is_last})
            has_ended = is_last

        producer = asyncio.ensure_future(self._produce(write))
        watcher = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((producer, watcher), return_when=asyncio.FIRST_COMPLETED)
            if has_ended:  # which the watcher takes for a disconnection: what `produce` has left to do is still done
                await asyncio.wait((producer,))
        finally:
            watcher.cancel()
            gone = not producer.done()
            producer.cancel()
            await asyncio.wait((producer, watcher))
        if gone:
            return
        try:
            producer.result()
        except TimeoutError:
            log.warning("a caller accepted nothing for %g s and is cut off", WRITE_TIMEOUT_S)
        else:
            if not has_ended:
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _field(path: str, message: str) -> str | None:
    """The field that msgspec's message is about: from its path, or the name it quotes."""
    if name := path.rstrip("`").lstrip("."):
        quoted = re.search(r"(?:missing required|unknown) field `(\w+)`", message)
        return f"{name}.{quoted[1]}" if quoted else name
    quoted = re.search(r"field `(\w+)`", message)
    return quoted[1] if quoted else None
