"""Traces continue their callers', and without a collector they cost nothing and record nothing."""

import asyncio
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from penstock.errors import ConfigError, WorkerLost
from penstock.telemetry.config import TraceConfig
from penstock.telemetry.otel import OtelTracer
from penstock.telemetry.trace import NO_TRACE, Trace, Tracer, current, incoming, open_tracer

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


class Recorder:
    """A tracer whose spans can be looked at."""

    def __init__(self, ratio: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer = OtelTracer(self._exporter, "test", ratio)

    def spans(self) -> dict[str, ReadableSpan]:
        """All that ended, by name."""
        self.tracer._provider.force_flush()
        return {span.name: span for span in self._exporter.get_finished_spans()}


def headers(**values: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"here"), *((name.encode(), value.encode()) for name, value in values.items())]


def test_valid_headers_of_the_caller_are_taken() -> None:
    assert incoming(headers(traceparent=PARENT)) == {"traceparent": PARENT}
    both = {"traceparent": PARENT, "tracestate": "vendor=1"}
    assert incoming(headers(**both)) == both


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "garbage",
        PARENT[:-1],
        PARENT + "\r\nx: y",
        PARENT.upper(),
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
    ],
)
def test_invalid_headers_are_dropped_with_their_state(parent: str) -> None:
    assert incoming(headers(traceparent=parent, tracestate="vendor=1")) == {}


def test_several_fields_of_a_state_are_one_and_of_two_parents_none_is_taken() -> None:
    parent, states = (b"traceparent", PARENT.encode()), [(b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    assert incoming([parent, *states]) == {"traceparent": PARENT, "tracestate": "a=1,b=2"}
    assert incoming([parent, parent]) == {}


def test_a_long_tracestate_is_dropped_alone() -> None:
    assert incoming(headers(traceparent=PARENT, tracestate="v=" + "1" * 600)) == {"traceparent": PARENT}


def test_without_a_collector_the_callers_headers_go_on_unchanged() -> None:
    trace = open_tracer(TraceConfig(), "test").begin("chat", "r1", {"traceparent": PARENT})
    assert not trace.is_recording
    with trace, trace.span("place") as span:
        span.note(tokens=1)
        span.record("first_token", 0.1)
    assert span.headers == {"traceparent": PARENT}
    assert trace.span("a") is trace, "nothing is made"


def test_without_a_collector_opentelemetry_is_not_imported() -> None:
    code = (
        "import sys; from penstock.telemetry.trace import open_tracer, TraceConfig; open_tracer(TraceConfig(), 'x'); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_current_trace_is_that_of_the_task_and_of_what_it_starts() -> None:
    async def work(tracer: Tracer, name: str) -> list[Trace]:
        mine = tracer.begin("chat", name, {})
        await asyncio.sleep(0)
        seen = asyncio.create_task(_current())
        return [mine, current(), await seen]

    async def both() -> list[list[Trace]]:
        tracer = Tracer()
        return await asyncio.gather(work(tracer, "a"), work(tracer, "b"))

    for mine, here, there in asyncio.run(both()):
        assert here is mine
        assert there is mine
    assert current() is NO_TRACE


async def _current() -> Trace:
    return current()


def test_spans_continue_the_callers_trace_and_name_their_parents() -> None:
    recorder = Recorder()
    with recorder.tracer.begin("chat", "r1", {"traceparent": PARENT, "tracestate": "vendor=1"}) as trace:
        with trace.span("generate", "client", url="http://d") as hop:
            pass
        trace.record("first_token", 0.25, 0.5, tokens=3)
    spans = recorder.spans()
    chat, generate, first = (spans[name] for name in ("chat", "generate", "first_token"))
    assert chat.parent is not None
    assert f"{chat.parent.span_id:016x}" == SPAN_ID
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE_ID}
    for child in (generate, first):
        assert child.parent is not None
        assert child.parent.span_id == chat.context.span_id
    assert hop.headers == {
        "traceparent": f"00-{TRACE_ID}-{generate.context.span_id:016x}-01",
        "tracestate": "vendor=1",
    }
    assert first.start_time is not None
    assert first.end_time is not None
    assert chat.end_time is not None
    assert first.end_time - first.start_time == pytest.approx(0.25e9, rel=1e-6)
    assert chat.end_time - first.end_time == pytest.approx(0.5e9, abs=0.1e9)
    assert chat.attributes is not None
    assert chat.attributes["penstock.request_id"] == "r1"


def test_errors_are_noted_and_cancellations_are_none() -> None:
    recorder = Recorder()
    trace = recorder.tracer.begin("chat", "r1", {})
    with pytest.raises(WorkerLost), trace.span("lost"):
        raise WorkerLost("it died")
    with pytest.raises(asyncio.CancelledError), trace.span("cancelled"):
        raise asyncio.CancelledError
    spans = recorder.spans()
    assert spans["lost"].status.status_code is StatusCode.ERROR
    assert spans["lost"].status.description == "it died"
    assert spans["cancelled"].status.status_code is StatusCode.UNSET


def test_the_caller_decides_whether_its_request_is_traced() -> None:
    recorder = Recorder(ratio=0.0)
    with recorder.tracer.begin("own", "r1", {}) as own:
        assert not own.is_recording
        flags = int(own.headers["traceparent"].rpartition("-")[2], 16)
        assert flags & 1 == 0, "the next hops do not trace it either"
    with recorder.tracer.begin("asked", "r2", {"traceparent": PARENT}) as asked:
        assert asked.is_recording
    with Recorder(ratio=1.0).tracer.begin("declined", "r3", {"traceparent": PARENT[:-1] + "0"}) as declined:
        assert not declined.is_recording
    assert set(recorder.spans()) == {"asked"}


def test_close_does_not_wait_long_for_a_collector_that_is_gone() -> None:
    tracer = open_tracer(TraceConfig(otlp_endpoint="http://127.0.0.1:9"), "test")
    with tracer.begin("chat", "r1", {}):
        pass

    async def close() -> None:
        async with asyncio.timeout(3):
            await asyncio.to_thread(tracer.close)

    asyncio.run(close())


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (TraceConfig(trace_ratio=1.5), "from 0 to 1"),
        (TraceConfig(otlp_endpoint="collector:4318"), "must start with http"),
    ],
)
def test_a_wrong_setting_is_refused(config: TraceConfig, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        open_tracer(config, "test")
