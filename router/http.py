"""HTTP as the API needs it, directly on ASGI: bounded bodies, a lifeline per request, streams that never end politely
when they end badly.

Why not framework responses: a client that leaves must cancel the work behind it at once; a stream that fails must be
cut without the terminating chunk (SDKs take a cleanly closed stream for success); and every token passes here.
"""

import asyncio
import ipaddress
import math
import re
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType

from starlette.types import Receive, Scope, Send

from penstock.errors import DeadlineExceeded, PenstockError, RequestError
from penstock.router.outbox import Outbox

_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_LINGER_BYTES = 64 * 2**20
_THIS_MACHINE = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))


class ClientGone(PenstockError):
    """The client closed the connection; nobody is left to answer."""


class Lifelines:
    """The requests in progress."""

    def __init__(self) -> None:
        self._open: set[Lifeline] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusal: PenstockError | None = None

    def __len__(self) -> int:
        return len(self._open)

    def add(self, lifeline: "Lifeline") -> None:
        """Raises what new requests are refused for."""
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        self._open.add(lifeline)
        self._idle.clear()

    def discard(self, lifeline: "Lifeline") -> None:
        self._open.discard(lifeline)
        if not self._open:
            self._idle.set()

    async def ended(self) -> None:
        """Returns when no request is in progress."""
        await self._idle.wait()

    def refuse(self, reason: PenstockError) -> None:
        """From now on no request begins."""
        self._refusal = reason

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
        self._is_answered = False

    async def __aenter__(self) -> "Lifeline":
        self._lifelines.add(self)
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancels_before = task.cancelling()
        self.began = asyncio.get_running_loop().time()
        self.deadline = self.began + self._timeout_s
        self._set_timer()
        self._watcher: asyncio.Task[None] | None = None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lifelines.discard(self)
        self.answered()
        if self._reason is not None and self._task.uncancel() <= self._cancels_before and kind is not None:
            raise self._reason from None

    async def body(
        self, scope: Scope, max_bytes: int, *, timeout_s: float = math.inf, take: Callable[[int], None] = lambda _: None
    ) -> bytes:
        """The request's body. From its end on the client is watched. `take` is told the bytes of each part; may raise.

        Raises RequestError when it is too long (413) or takes too long (408), ClientGone.
        """
        try:
            async with asyncio.timeout(timeout_s if timeout_s < math.inf else None):
                body = await read_body(scope, self._receive, max_bytes, take)
        except TimeoutError:
            said = f"the request body took longer than {timeout_s:g} s"
            raise RequestError(said, code="body_timeout", status=408) from None
        self._watcher = asyncio.create_task(self._watch_client())
        return body

    def end_by(self, deadline: float) -> None:
        """An earlier deadline than the first, on the event loop's clock."""
        if deadline < self.deadline:
            self._timer.cancel()
            self._timeout_s -= self.deadline - deadline
            self.deadline = deadline
            self._set_timer()

    def answered(self) -> None:
        """The client has everything: that it leaves now, or that the deadline passes, ends nothing."""
        self._is_answered = True
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def cut(self, reason: PenstockError) -> None:
        """Ends the request for `reason`; only the first counts, and none when it is answered."""
        if self._reason is None and not self._is_answered:
            self._reason = reason
            self._task.cancel()

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_at(self.deadline, self._time_out)

    def _time_out(self) -> None:
        self.cut(DeadlineExceeded(f"the request's deadline of {self._timeout_s:g} s passed"))

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.cut(ClientGone("the client closed the connection"))


async def read_body(scope: Scope, receive: Receive, max_bytes: int, take: Callable[[int], None]) -> bytes:
    """The request's body. Raises RequestError when it is compressed (415), or (413) as soon as it is known to be longer
    than `max_bytes`."""
    coding = header(scope, b"content-encoding") or "identity"
    if coding.lower() != "identity":
        raise RequestError("compressed bodies are not taken", code="unsupported_content_encoding", status=415)
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
        take(len(parts[-1]))
        num_bytes += len(parts[-1])
        if num_bytes > max_bytes:
            raise too_long
        if not message.get("more_body", False):
            return b"".join(parts)


def header(scope: Scope, name: bytes) -> str | None:
    """The first header called `name` (lower case), as text."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def request_id_of(scope: Scope) -> str:
    """The client's own id when it is one, else a new one."""
    given = header(scope, b"x-request-id")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def is_from_this_machine(scope: Scope) -> bool:
    """Whether the peer is 127.0.0.1 or ::1. Of a proxy there, the peer that it speaks for counts. Other loopback
    addresses do not: Istio's sidecar passes on from 127.0.0.6 what comes from anywhere."""
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except (KeyError, TypeError, ValueError):
        return False
    return (getattr(address, "ipv4_mapped", None) or address) in _THIS_MACHINE


class Reply:
    """The answer to one request: one JSON body, or a stream of server-sent events."""

    def __init__(
        self,
        send: Send,
        receive: Receive,
        request_id: str,
        id_headers: Sequence[bytes] = (b"x-request-id",),
        is_free: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_free` as an Outbox takes it."""
        self._send = send
        self._receive = receive
        self._outbox = Outbox(send, is_free)
        self._timer: asyncio.TimerHandle | None = None
        self._silence_s = 0.0
        self._told = -1
        self.request_id = request_id
        self.headers = [(name, request_id.encode()) for name in id_headers]
        self.status = 0
        """The status sent, 0 before that."""
        self.is_early = False
        """The request's body is not read to its end: the connection cannot be used again."""

    async def json(self, body: bytes, status: int = 200) -> None:
        """The whole answer, also of a stream that has not begun."""
        self._rest()  # while a paused connection holds this up, no comment may come between
        self.status = status
        headers = [*self.headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if self.is_early:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        if self.is_early:
            await self._linger(body)
        await self._send({"type": "http.response.body", "body": b"" if self.is_early else body})

    async def start_events(self) -> None:
        """The headers of a stream leave, before its first event."""
        self._begin_events()
        await self._outbox.put(b"")

    def _begin_events(self) -> None:
        self.status = 200
        headers = [
            *self.headers,
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        self._outbox.start({"type": "http.response.start", "status": 200, "headers": headers})

    def never_silent(self, silence_s: float) -> None:
        """From now on the client gets a comment whenever it got nothing else for `silence_s`, the headers first."""
        self._silence_s = silence_s
        self._keep_alive()

    def _keep_alive(self) -> None:
        if self._told == self._outbox.num_events:  # nothing since the last look
            if not self.status:
                self._begin_events()
            self._outbox.remark(b": keep-alive\n\n")
        self._told = self._outbox.num_events
        self._timer = asyncio.get_running_loop().call_later(self._silence_s / 2, self._keep_alive)

    async def event(self, data: bytes) -> None:
        """Does not wait for the client. Raises SlowClient."""
        await self._outbox.put(b"data: " + data + b"\n\n")

    async def flush(self) -> None:
        """Returns when all events are sent."""
        await self._outbox.flush()

    def close(self) -> None:
        """Drops the events that still wait."""
        self._rest()
        self._outbox.close()

    async def end_events(self) -> None:
        """The good end, with OpenAI's last event."""
        self._rest()
        await self.flush()
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
