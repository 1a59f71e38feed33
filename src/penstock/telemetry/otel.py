"""Traces as OpenTelemetry spans. The only module that imports OpenTelemetry (the extra tracing)."""

import asyncio
import threading
import time
import uuid
from collections.abc import Mapping
from types import TracebackType

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace import Tracer as SdkTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import penstock
from penstock.errors import reason_of
from penstock.telemetry.trace import Kind, Trace, Tracer, Value, make_current

CLOSE_S = 1.0
"""A process that ends waits no longer for its collector: what is left is lost."""
_SEND_S = 5.0
_KINDS = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT}

_propagator = TraceContextTextMapPropagator()


def otlp_exporter(endpoint: str) -> OTLPSpanExporter:
    """Sends protobuf to the collector at `endpoint`; OTEL_EXPORTER_OTLP_HEADERS and _CERTIFICATE are heeded."""
    return OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_S)


class OtelTracer(Tracer):
    """Begins traces, or continues those of callers, and sends their spans in batches from a thread of its own."""

    def __init__(self, exporter: SpanExporter, service: str, ratio: float) -> None:
        """`ratio` of the traces that begin here are sampled; of others, those that their callers sample."""
        names = {
            "service.name": service,
            "service.version": penstock.__version__,
            "service.instance.id": uuid.uuid4().hex,
        }
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), resource=Resource.create(names), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("penstock", penstock.__version__)

    def begin(self, name: str, request_id: str, headers: Mapping[str, str]) -> Trace:
        context = _propagator.extract(headers)
        attributes = {"penstock.request_id": request_id}
        span = self._tracer.start_span(name, context, kind=SpanKind.SERVER, attributes=attributes)
        trace = OtelTrace(self._tracer, span, request_id)
        make_current(trace)
        return trace

    def close(self) -> None:
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class OtelTrace(Trace):
    """One OpenTelemetry span."""

    __slots__ = ("_span", "_tracer", "is_recording", "trace_id")

    def __init__(self, tracer: SdkTracer, span: Span, request_id: str) -> None:
        headers: dict[str, str] = {}
        _propagator.inject(headers, set_span_in_context(span))
        super().__init__(request_id, headers)
        self._tracer = tracer
        self._span = span
        self.is_recording = span.is_recording()
        self.trace_id = format_trace_id(span.get_span_context().trace_id)

    def span(self, name: str, kind: Kind = "internal", **attributes: Value) -> Trace:
        context = set_span_in_context(self._span)
        child = self._tracer.start_span(name, context, kind=_KINDS[kind], attributes=attributes)
        return OtelTrace(self._tracer, child, self.request_id)

    def record(self, name: str, seconds: float, ago_s: float = 0.0, **attributes: Value) -> None:
        ended_ns = time.time_ns() - int(1e9 * ago_s)
        began_ns = ended_ns - int(1e9 * seconds)
        context = set_span_in_context(self._span)
        child = self._tracer.start_span(name, context, start_time=began_ns, attributes=attributes)
        child.end(ended_ns)

    def note(self, **attributes: Value) -> None:
        self._span.set_attributes(attributes)

    def failed(self, error: BaseException) -> None:
        self._span.set_status(Status(StatusCode.ERROR, reason_of(error)))
        self._span.set_attribute("error.type", type(error).__name__)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self.failed(error)
        self._span.end()
