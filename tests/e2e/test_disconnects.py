"""A client that leaves takes its request with it: within a second nothing of it is left on P or D."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.client import new_async_client, new_client, random_prompt, stream_completion
from tests.e2e.conftest import Deploy
from tests.e2e.deployment import Deployment
from tests.e2e.proxy import LoopThread, Proxy, Step, Trap, proxied

PROMPT = random_prompt(600, seed=3)
"""38 steps of 16 tokens."""
FREE_WITHIN_S = 1.0


@dataclass
class Watched:
    """One worker of each role behind proxies."""

    deployment: Deployment
    loop: LoopThread
    proxies: dict[str, Proxy]

    async def leave(self, worker: str, step: Step, count: int, num_samples: int) -> None:
        """Asks, and closes the connection when a call to `worker` has reached `step` for the `count`-th time."""
        reached = asyncio.Event()
        self.proxies[worker].trap = Trap(step, count, reached.set)
        async with new_async_client(self.deployment.url) as client:
            asking = asyncio.create_task(stream_completion(client, PROMPT, max_tokens=400, n=num_samples))
            async with asyncio.timeout(20):
                await reached.wait()
            asking.cancel()
            await asyncio.wait([asking])
        self.proxies[worker].trap = None
        assert asking.cancelled(), "the answer was complete before the client left"


@pytest.fixture(scope="module")
def watched(deploy_for_module: Deploy) -> Iterator[Watched]:
    with proxied() as (loop, proxies, reached_at):
        # No cache: every prompt is computed and moved anew.
        deployment = deploy_for_module(
            reached_at=reached_at, engine={"prefix_cache": False}, router={"index_blocks": 1}
        )
        yield Watched(deployment, loop, proxies)


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize(
    ("worker", "step", "count"),
    [
        pytest.param("decode-0", Step.ACCEPTED, 1, id="before-prefill"),
        pytest.param("prefill-0", Step.TICKET, 5, id="mid-prefill"),
        pytest.param("prefill-0", Step.LAST, 1, id="before-the-first-token"),
        pytest.param("decode-0", Step.TOKENS, 20, id="mid-decode"),
    ],
)
def test_blocks_are_free_within_a_second(
    watched: Watched, worker: str, step: Step, count: int, num_samples: int
) -> None:
    prefill = watched.deployment.prefill[0]
    before = prefill.metric("penstock_prefill_tokens_total")
    watched.loop.run(watched.leave(worker, step, count, num_samples))
    left = time.monotonic()
    watched.deployment.assert_quiet(FREE_WITHIN_S)
    assert time.monotonic() - left < FREE_WITHIN_S
    if step in (Step.ACCEPTED, Step.TICKET):
        assert prefill.metric("penstock_prefill_tokens_total") - before < len(PROMPT), "P went on computing"


def test_the_deployment_goes_on(watched: Watched) -> None:
    watched.loop.run(watched.leave("prefill-0", Step.TICKET, 3, 1))
    with new_client(watched.deployment.url) as client:
        answer = client.completions.create(model="model", prompt=PROMPT, max_tokens=3, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
