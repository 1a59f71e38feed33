"""Placement by seconds with real workers: costs are learned from their timings, and predictions come true."""

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from penstock.router.placement.drift import WINDOW
from tests.e2e.client import completion, new_client, random_prompt
from tests.e2e.conftest import Deploy
from tests.e2e.deployment import DEFAULT_POLICY, Deployment, metrics_of


@pytest.fixture(scope="module")
def cluster(deploy_for_module: Deploy) -> Iterator[Deployment]:
    """Placed by seconds, as by default."""
    cluster = deploy_for_module(decode=2, router=DEFAULT_POLICY, engine={"max_step_tokens": 64})
    yield cluster
    cluster.assert_quiet()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def test_predictions_hold_and_decisions_are_explained(cluster: Deployment) -> None:
    with new_client(cluster.url) as client, ThreadPoolExecutor(4) as pool:

        def ask(number: int) -> None:
            """Twenty conversations of three prompts, each longer than the one before and cached in part."""
            prompt = random_prompt(120 + 60 * (number // 20), seed=number % 20)
            completion(client, prompt, max_tokens=8, extra_headers={"x-request-id": f"r{number}"})

        list(pool.map(ask, range(2 * WINDOW)))
        list(pool.map(ask, range(60)))
    assert get(f"{cluster.url}/ready")["drift"] == []
    explanation = get(f"{cluster.url}/explain/r59")
    assert explanation["by"] == "seconds"
    assert explanation["ttft_s"] > 0
    assert explanation["num_candidates"] == 2 + 2 + 2  # alone, with P, each other's prompts
    found = metrics_of(cluster.url)
    assert found["penstock_router_ttft_prediction_error_seconds_count"] == 2 * WINDOW + 60
    assert found["penstock_router_worker_refused_timings"] == 0
