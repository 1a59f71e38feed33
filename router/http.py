"""HTTP as the API needs it, directly on ASGI: bounded bodies, a lifeline per request, streams that never end politely
when they end badly.

Why not framework responses: a client that leaves must cancel the work behind it at once; a stream that fails must be
cut without the terminating chunk (SDKs take a cleanly closed stream for success); and every token passes here.
"""

import asyncio
import ipaddress
import math
from collections.abc import Callable
from types import TracebackType

from starlette.types import Receive, Scope, Send

from penstock.errors import DeadlineExceeded, PenstockError, RequestError, RetryableError
from penstock.router.outbox import Outbox

_LINGER_BYTES = 64 * 2**20


class ClientGone(PenstockError):
    """The client closed the connection; nobody is left to answer."""


class Lifelines:
    """The requests in progress."""

    def __init__(self) -> None:
        self._open: set[Lifeline] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, lifeline: "Lifeline") -> None:
        self._open.add(lifeline)
        self._idle.clear()

    def discard(self, lifeline: "Lifeline") -> None:
        self._open.discard(lifeline)
        if not self._open:
            self._idle.set()

    async def ended(self) -> None:
        """Returns when no request is in progress."""
        await self._idle.wait()

    def cut_all(self, reason: PenstockError) -> None:
        """Ends every request in progress for `reason`."""
        for lifeline in list(self._open):
            lifeline.cut(reason)


class Lifeline:
    """Holds one request's task to its client, its deadline and its server: whichever ends first cancels the work.

    Leaving the block then raises the reason instead of CancelledError.
    """

    def __init__(self, receive: Receive, timeout_s: float, lifelines: Lifelines) -> None:
        self._receive = receive
        self._timeout_s = timeout_s
        self._lifelines = lifelines
        self._reason: PenstockError | None = None

    async def __aenter__(self) -> "Lifeline":
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancels_before = task.cancelling()
        loop = asyncio.get_running_loop()
        self.deadline = loop.time() + self._timeout_s
        late = DeadlineExceeded(f"the request's deadline of {self._timeout_s:g} s passed")
        self._timer = loop.call_at(self.deadline, self.cut, late)
        self._watcher: asyncio.Task[None] | None = None
        self._lifelines.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lifelines.discard(self)
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._reason is not None and self._task.uncancel() <= self._cancels_before and kind is not None:
            raise self._reason from None

    async def body(self, scope: Scope, max_bytes: int) -> bytes:
        """The request's body. From its end on the client is watched. Raises RequestError, ClientGone."""
        body = await read_body(scope, self._receive, max_bytes)
        self._watcher = asyncio.create_task(self._watch_client())
        return body

    def cut(self, reason: PenstockError) -> None:
        """Ends the request for `reason`; only the first counts."""
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.cut(ClientGone("the client closed the connection"))


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The request's body. Raises RequestError (413) as soon as it is known to be longer than `max_bytes`."""
    too_long = RequestError(f"the request body is longer than {max_bytes} bytes", code="request_too_large", status=413)
    if int(header(scope, b"content-length") or 0) > max_bytes:
        raise too_long
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client closed the connection while sending its request")
        parts.append(message.get("body", b""))
        num_bytes += len(parts[-1])
        if num_bytes > max_bytes:
            raise too_long
        if not message.get("more_body", False):
            return b"".join(parts)


def header(scope: Scope, name: bytes) -> str | None:
    """The first header called `name` (lower case), as text."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def is_from_this_machine(scope: Scope) -> bool:
    """Whether the peer has a loopback address. Of a proxy on this machine, the peer that it speaks for counts."""
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except (KeyError, TypeError, ValueError):
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class Reply:
    """The answer to one request: one JSON body, or a stream of server-sent events."""

    def __init__(
        self, send: Send, receive: Receive, request_id: str, is_free: Callable[[], bool] = lambda: False
    ) -> None:
        """`is_free` as an Outbox takes it."""
        self._send = send
        self._receive = receive
        self._outbox = Outbox(send, is_free)
        self.request_id = request_id
        self.headers = [(b"x-request-id", request_id.encode())]
        self.status = 0
        """The status sent, 0 before that."""
        self.is_early = False
        """The request's body is not read to its end: the connection cannot be used again."""

    async def json(self, body: bytes, status: int = 200, *, retry_after_s: float | None = None) -> None:
        """The whole answer."""
        self.status = status
        headers = [*self.headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after_s))))
        if self.is_early:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        if self.is_early:
            await self._linger(body)
        await self._send({"type": "http.response.body", "body": b"" if self.is_early else body})

    async def start_events(self) -> None:
        self.status = 200
        headers = [
            *self.headers,
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(self, data: bytes) -> None:
        """Does not wait for the client. Raises SlowClient."""
        await self._outbox.put(b"data: " + data + b"\n\n")

    async def flush(self) -> None:
        """Returns when all events are sent."""
        await self._outbox.flush()

    def close(self) -> None:
        """Drops the events that still wait."""
        self._outbox.close()

    async def end_events(self) -> None:
        """The good end, with OpenAI's last event."""
        await self.flush()
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _linger(self, body: bytes) -> None:
        """Sends `body`, then throws away what the client is still sending: closing now would reset the connection, and
        the client would see the reset instead of the answer."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        thrown_away = 0
        try:
            async with asyncio.timeout(2.0):
                while thrown_away < _LINGER_BYTES:
                    message = await self._receive()
                    thrown_away += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def timeout_of(scope: Scope, default_s: float, longest_s: float) -> float:
    """Seconds the client gives this request: its `timeout` header, else `default_s`. Raises RequestError."""
    text = header(scope, b"timeout")
    if text is None:
        return default_s
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s <= longest_s:
        raise RequestError(f"the timeout header must be seconds in (0, {longest_s:g}], not {text!r}", field="timeout")
    return timeout_s


def retry_after_of(error: RetryableError) -> float:
    """Seconds after which trying again makes sense."""
    return error.retry_after_s if error.retry_after_s is not None else 1.0
