"""Workers become slow of a sudden: a running router says so, and places by load until its predictions hold again."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import openai

from penstock.router.placement.drift import WINDOW
from tests.router.fake_worker import FakeWorker, Stream, answer
from tests.router.serving import RunningRouter
from tests.router.test_operation import get

_MOST = WINDOW * 3 // 4
"""Of a window; they come at once, before the router has learned that all are slow."""


async def late(stream: Stream) -> None:
    await asyncio.sleep(0.3)
    await answer(stream)


def told(router: RunningRouter) -> tuple[float, list[str]]:
    """By the metric, and by /ready, which stays good: answers are only late."""
    status, ready = get(router, "/ready")
    assert status == 200
    lines = get(router, "/metrics")[1].splitlines()
    (alarm,) = [line for line in lines if line.startswith('penstock_router_drift_alarm{of="ttft"} ')]
    return float(alarm.rpartition(" ")[2]), json.loads(ready)["drift"]


def test_late_first_tokens_raise_the_alarm_and_timely_ones_end_it(
    router: RunningRouter, worker: FakeWorker, connect: Callable[[RunningRouter], openai.OpenAI]
) -> None:
    client = connect(router)

    def ask(name: str) -> str:
        client.completions.create(model="tiny", prompt=name, max_tokens=1, extra_headers={"x-request-id": name})
        decision = router.services.journal.find(name)
        assert decision is not None
        return decision.placement.by

    assert ask("as-ever") == "seconds"
    assert told(router) == (0.0, [])
    worker.scripts.extend([late] * _MOST)
    with ThreadPoolExecutor(_MOST) as pool:
        list(pool.map(ask, [f"late-{number}" for number in range(_MOST)]))
    assert told(router) == (1.0, ["ttft"])
    assert ask("meanwhile") == "load"
    for number in range(WINDOW):
        ask(f"in-time-{number}")
    assert told(router) == (0.0, [])
    assert ask("as-before") == "seconds"
