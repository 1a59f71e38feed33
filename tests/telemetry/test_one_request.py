"""One request over router, prefill and decode worker: one trace with the right parents, and its id in all logs."""

import itertools
import json
import os
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
import pytest

from tests.local.processes import running_up
from tests.local.tiny_model import write_tiny_model
from tests.router.serving import wait_until
from tests.telemetry.collector import Collector, Received, running_collector
from tests.worker.requests import run

pytestmark = pytest.mark.slow

CALLER = "b7ad6b7169203331"
CHUNK = 64
SPANS = {
    "penstock-router": ("chat", "tokenize", "queue", "place", "generate", "first_token"),
    "penstock-decode": ("generate", "queue", "prefill", "transfer", "first_token", "decode"),
    "penstock-prefill": ("prefill", "queue", "prefill_chunk", "lease"),
}
CLOCK_S = 0.15
"""Durations cross a pipe and are placed on the front's clock, so that a span may stick out, on a busy machine more."""
HANG_UP_S = 1.0
"""A prefill worker learns from the closed connection that its call is over."""


@dataclass(frozen=True)
class Served:
    """One request that was answered."""

    request_id: str
    trace_id: str
    spans: list[Received]
    collector: Collector
    logs: dict[str, list[dict[str, object]]]
    usage: dict[str, int]

    def one(self, service: str, name: str, parent: str | None = None) -> Received:
        (found,) = (
            span
            for span in self.spans
            if (span.service, span.name) == (service, name) and parent in (None, span.parent_id)
        )
        return found

    def all(self, name: str) -> list[Received]:
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.began_s)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("traced")
    model = write_tiny_model(folder / "tiny")
    trace_id, request_id = uuid.uuid4().hex, "client-chose-this"
    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "100"
    with running_collector() as collector:
        flags = {
            "port": 0,
            "kv-bytes": "8MiB",
            "max-step-tokens": CHUNK,
            "policy": "least-work",  # always hands over
            "log-dir": folder / "logs",
            "log-format": "json",
            "log-level": "info",
            "log-requests": "true",
            "otlp-endpoint": collector.url,
        }
        with running_up(str(model), *(f"--{name}={value}" for name, value in flags.items())) as up:
            del os.environ["OTEL_BSP_SCHEDULE_DELAY"]
            url = up.wait_ready()
            wait_until(lambda: sees_all_workers(url), "readiness of all workers")
            headers = {"traceparent": f"00-{trace_id}-{CALLER}-01", "x-request-id": request_id}
            usage = ask_once(url, headers)
            names = [f"{service} {name}" for service, names in SPANS.items() for name in names]
            spans = collector.wait_for(*names, trace_id=trace_id)
            up.stop()
        logs = {path.stem: list(map(json.loads, path.read_text().splitlines())) for path in (folder / "logs").iterdir()}
        yield Served(request_id, trace_id, spans, collector, logs, usage)


def ask_once(url: str, headers: dict[str, str]) -> dict[str, int]:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "What is the KV cache, and who fills it with keys? " * 8}],
        "max_tokens": 12,
        "ignore_eos": True,
    }

    async def main() -> dict[str, int]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer,
        ):
            found = await answer.json()
            assert answer.status == 200, found
            assert "x-penstock-prefill" in answer.headers
            usage: dict[str, int] = found["usage"]
            return usage

    return run(main)


def sees_all_workers(url: str) -> bool:
    """The cluster is ready with its decode worker; the router may find the prefill worker at its next look."""
    with urllib.request.urlopen(f"{url}/ready", timeout=5) as answer:
        return all(worker["ready"] for worker in json.load(answer)["workers"].values())


def test_every_span_is_there_once_and_prefill_chunks_cover_the_prompt(served: Served) -> None:
    assert served.collector.paths == {"/v1/traces"}
    for service, names in SPANS.items():
        found = [span.name for span in served.spans if span.service == service]
        assert sorted(set(found)) == sorted(names)
        assert [name for name in set(found) - {"prefill_chunk"} if found.count(name) > 1] == []
    chunks = [span.attributes["count"] for span in served.all("prefill_chunk")]
    assert len(chunks) > 1
    assert sum(map(int, chunks)) == served.usage["prompt_tokens"]
    assert not any(span.failed for span in served.spans)


def test_parents_follow_the_hops(served: Served) -> None:
    chat = served.one("penstock-router", "chat")
    assert chat.parent_id == CALLER
    hop = served.one("penstock-router", "generate")
    generate = served.one("penstock-decode", "generate")
    call = served.one("penstock-decode", "prefill")
    prefill = served.one("penstock-prefill", "prefill")
    assert hop.parent_id == chat.span_id
    assert generate.parent_id == hop.span_id
    assert call.parent_id == generate.span_id
    assert prefill.parent_id == call.span_id
    parents = {"penstock-router": chat, "penstock-decode": generate, "penstock-prefill": prefill}
    for service, names in SPANS.items():
        for span in (span for span in served.spans if span.service == service and span.name in names[1:]):
            assert span.parent_id == parents[service].span_id, f"{service} {span.name}"


def test_times_are_those_of_one_request(served: Served) -> None:
    by_id = {span.span_id: span for span in served.spans}
    for span in served.spans:
        assert span.began_s <= span.ended_s
        parent = by_id.get(span.parent_id)
        if parent is not None:
            assert span.began_s >= parent.began_s - CLOCK_S, span.name
            late_s = HANG_UP_S if span.service == "penstock-prefill" and span.name in ("prefill", "lease") else CLOCK_S
            assert span.ended_s <= parent.ended_s + late_s, span.name
    chunks = served.all("prefill_chunk")
    for earlier, later in itertools.pairwise(chunks):
        assert later.began_s >= earlier.ended_s - CLOCK_S
    transfer, decode = served.one("penstock-decode", "transfer"), served.one("penstock-decode", "decode")
    assert transfer.began_s >= chunks[0].ended_s - CLOCK_S, "blocks move when they are computed"
    assert transfer.ended_s <= served.one("penstock-decode", "prefill").ended_s + CLOCK_S, "the call is the lease"
    first = served.one("penstock-decode", "first_token")
    assert decode.began_s == pytest.approx(first.ended_s, abs=CLOCK_S)
    assert first.ended_s >= chunks[-1].ended_s - CLOCK_S


def test_spans_say_how_much(served: Served) -> None:
    chat = served.one("penstock-router", "chat").attributes
    assert chat["penstock.request_id"] == served.request_id
    assert chat["gen_ai.usage.input_tokens"] == served.usage["prompt_tokens"]
    assert chat["gen_ai.usage.output_tokens"] == 12
    assert chat["status"] == "200"
    assert served.one("penstock-decode", "decode").attributes["tokens"] == 12
    blocks = served.one("penstock-prefill", "lease").attributes["blocks"]
    assert served.one("penstock-decode", "transfer").attributes["count"] == blocks


def test_every_log_line_is_json_and_every_part_names_the_request_and_its_trace(served: Served) -> None:
    assert set(served.logs) == {"router", "prefill-0", "decode-0"}
    for part, lines in served.logs.items():
        ended = [line for line in lines if line.get("request_id") == served.request_id]
        assert [line["message"] for line in ended] == ["the request has ended"], part
        assert ended[0]["trace_id"] == served.trace_id
        assert isinstance(ended[0]["seconds"], float)
        assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    (router,) = (line for line in served.logs["router"] if "endpoint" in line)
    assert router["output_tokens"] == 12
    assert str(router["prefill"]).startswith("http://127.0.0.1:")
    assert 0 < float(str(router["first_token_s"])) < float(str(router["seconds"]))
