"""What happened to one request in this process, as spans that continue its caller's trace (W3C Trace Context).

Without a collector, the default, nothing is recorded: a Trace then only carries the request's id and what the caller
sent, for the next hop. OpenTelemetry is imported by otel.py alone, and that only when a collector is named.
"""

import importlib.util
import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Literal, Self, TypeAlias

from penstock.config import check_url
from penstock.errors import ConfigError
from penstock.telemetry.config import TraceConfig

Value: TypeAlias = str | int | float | bool
Kind: TypeAlias = Literal["internal", "client"]

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LONGEST_TRACESTATE = 512
"""Bytes; the specification asks for at least as many."""


class Trace:
    """One span of a request, and the parent of what happens within it. This one records nothing."""

    __slots__ = ("headers", "request_id")

    is_recording = False
    trace_id = ""
    """32 hexadecimal digits, as logs name the trace; empty when nothing is recorded."""

    def __init__(self, request_id: str, headers: Mapping[str, str]) -> None:
        self.request_id = request_id
        self.headers = headers
        """For the next hop: they make this span the parent of what happens there."""

    def span(self, name: str, kind: Kind = "internal", **attributes: Value) -> "Trace":
        """A child that begins now and ends with its `with` block; "client" when the block is a call to another process.

        An exception that leaves the block is noted, but not a cancellation.
        """
        del name, kind, attributes
        return self

    def record(self, name: str, seconds: float, ago_s: float = 0.0, **attributes: Value) -> None:
        """A child that is over: it took `seconds` and ended `ago_s` seconds ago."""

    def note(self, **attributes: Value) -> None:
        """Adds attributes."""

    def failed(self, error: BaseException) -> None:
        """Marks the span as failed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Tracer:
    """Begins traces. This one records nothing."""

    def begin(self, name: str, request_id: str, headers: Mapping[str, str]) -> Trace:  # noqa: ARG002 - see OtelTracer
        """A request comes in, with its caller's trace `headers`; from now on its Trace is `current()` in this task."""
        trace = Trace(request_id, headers)
        make_current(trace)
        return trace

    def close(self) -> None:
        """Sends what waits, for a second at most. Blocks."""


NO_TRACE = Trace("", {})
_current: ContextVar[Trace] = ContextVar("trace", default=NO_TRACE)


def current() -> Trace:
    """The trace of the request that this task works for."""
    return _current.get()


def make_current(trace: Trace) -> None:
    """From now on `trace` is this task's, and that of the tasks it creates."""
    _current.set(trace)


def incoming(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """The caller's traceparent and tracestate out of ASGI headers; nothing when they are not valid."""
    found = [(name, value) for name, value in headers if name in (b"traceparent", b"tracestate")]
    parents = [value for name, value in found if name == b"traceparent"]
    if len(parents) != 1 or not _TRACEPARENT.fullmatch(parent := parents[0]):
        return NO_TRACE.headers
    state = b",".join(value for name, value in found if name == b"tracestate")
    keeps_state = 0 < len(state) <= _LONGEST_TRACESTATE and state.isascii()
    return {"traceparent": parent.decode()} | ({"tracestate": state.decode()} if keeps_state else {})


def check_tracing(config: TraceConfig) -> None:
    """Raises ConfigError when traces could not be sent as `config` says."""
    if not 0 <= config.trace_ratio <= 1:
        raise ConfigError(f"--trace-ratio must be from 0 to 1, not {config.trace_ratio}")
    if not config.otlp_endpoint:
        return
    check_url("--otlp-endpoint", config.otlp_endpoint)
    if importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.exporter") is None:
        raise ConfigError(
            "--otlp-endpoint needs the extra tracing, which is not installed; in a clone of Penstock run: "
            "pip install --constraint constraints.txt --editable '.[tracing]'"
        )


def open_tracer(config: TraceConfig, service: str) -> Tracer:
    """The tracer that `config` asks for; `service` names this process in traces. Raises ConfigError.

    With a collector it starts a thread: do not fork afterwards.
    """
    check_tracing(config)
    if not config.otlp_endpoint:
        return Tracer()
    from penstock.telemetry.otel import OtelTracer, otlp_exporter

    return OtelTracer(otlp_exporter(config.otlp_endpoint), service, config.trace_ratio)
