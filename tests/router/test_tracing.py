"""The caller's trace goes on to the worker, also through a router that does not trace."""

import urllib.request

import msgspec
import pytest

from tests.router.fake_worker import FakeWorker
from tests.router.serving import MESSAGES, RunningRouter

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ask(router: RunningRouter, **headers: str) -> None:
    body = msgspec.json.encode({"model": "tiny", "messages": MESSAGES, "max_tokens": 1})
    request = urllib.request.Request(f"{router.url}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("headers", [{}, {"traceparent": PARENT}, {"traceparent": PARENT, "tracestate": "v=1"}])
def test_a_router_without_a_collector_passes_the_trace_on(
    router: RunningRouter, worker: FakeWorker, headers: dict[str, str]
) -> None:
    ask(router, **headers)
    assert worker.trace_headers == [headers]


def test_what_is_no_traceparent_is_not_passed_on(router: RunningRouter, worker: FakeWorker) -> None:
    ask(router, traceparent=PARENT.replace("00-", "zz-", 1), tracestate="v=1")
    assert worker.trace_headers == [{}]
