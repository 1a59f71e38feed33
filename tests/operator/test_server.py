"""The operator's probes and metrics: alive means that no watch has stalled."""

import asyncio
import time
from typing import Any, cast

import aiohttp
import pytest

from penstock.listen import free_port
from penstock.operator.client import Client
from penstock.operator.config import OperatorConfig
from penstock.operator.main import Operation
from penstock.operator.metrics import Metrics
from penstock.operator.server import serving
from penstock.operator.watch import STALLED_S


async def ask(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


def answers(trouble: str | None, *paths: str) -> list[tuple[int, str]]:
    async def run() -> list[tuple[int, str]]:
        port = free_port()
        async with serving("127.0.0.1", port, Metrics(), lambda: trouble):
            return [await ask(port, path) for path in paths]

    return asyncio.run(run())


def test_trouble_fails_the_liveness_probe_and_says_what_it_is() -> None:
    assert answers(None, "/healthz", "/readyz") == [(200, "ok"), (200, "ok")]
    assert answers("the watch of pods is stuck", "/healthz") == [(500, "the watch of pods is stuck")]


def test_metrics_tell_of_looks_queue_calls_and_errors() -> None:
    ((status, said),) = answers(None, "/metrics")
    assert status == 200
    for name in ("reconcile_seconds", "queue_depth", "api_calls_total", "reconcile_errors_total", "leading"):
        assert f"# TYPE penstock_operator_{name} " in said


@pytest.fixture
def operation() -> Operation:
    found = Operation(OperatorConfig(), cast("Client", None), Metrics())
    found._leads = True
    return found


def test_a_watch_that_has_stalled_is_trouble(operation: Operation) -> None:
    assert operation.trouble() is None
    stalled: Any = operation._watches[-1]
    stalled.alive_at = time.monotonic() - STALLED_S - 1
    assert operation.trouble() == "the watch of pods has said nothing for 121 s"


def test_a_standby_watches_nothing_and_has_no_trouble(operation: Operation) -> None:
    operation._leads = False
    for watch in operation._watches:
        watch.alive_at = 0.0
    assert operation.trouble() is None
