"""Tenants with different salts: neither what a request finds in a cache nor how long it takes tells one of another."""

import time

import openai
import pytest

from tests.e2e.client import Reply, completion, new_client, random_prompt
from tests.e2e.conftest import Deploy
from tests.e2e.deployment import metrics_of, prediction_outcomes
from tests.e2e.processes import eventually

PROMPT_TOKENS, LEAST_ROUNDS, MOST_ROUNDS = 400, 12, 60
"""25 steps of 16 tokens: what a hit saves is far more than the noise."""


def timed(client: openai.OpenAI, prompt: list[int], salt: str) -> tuple[float, Reply]:
    """Seconds of a request for one token."""
    began = time.monotonic()
    reply = completion(client, prompt, salt=salt, max_tokens=1)
    return time.monotonic() - began, reply


def cached(reply: Reply) -> int:
    found: int = reply.usage.prompt_tokens_details.cached_tokens
    return found


@pytest.mark.slow
@pytest.mark.parametrize("prefill", [0, 1], ids=["decode alone", "with a prefill worker"])
def test_a_tenant_cannot_tell_what_another_has_asked(deploy: Deploy, prefill: int) -> None:
    """Prompts that another tenant has just sent, prompts that nobody has sent, and one's own again, in turns."""
    deployment = deploy(prefill=prefill, decode=1, engine={"num_blocks": 4096})
    seen: list[float] = []
    fresh: list[float] = []
    own: list[float] = []
    with new_client(deployment.url) as client:
        for number in range(MOST_ROUNDS):
            known = random_prompt(PROMPT_TOKENS, seed=2 * number)
            assert cached(timed(client, known, salt="victim")[1]) == 0
            tries = [(seen, known), (fresh, random_prompt(PROMPT_TOKENS, seed=2 * number + 1))]
            for times, prompt in tries if number % 2 else reversed(tries):
                seconds, reply = timed(client, prompt, salt="curious")
                assert cached(reply) == 0
                times.append(seconds)
            seconds, reply = timed(client, known, salt="curious")
            assert cached(reply) == PROMPT_TOKENS - 8
            own.append(seconds)
            # Other work on the machine only ever adds: the quickest of each come nearer to the truth with every round.
            saved, told = min(fresh) - min(own), abs(min(seen) - min(fresh))
            if number + 1 >= LEAST_ROUNDS and told < 0.3 * saved:
                break
    assert saved > 0.3 * min(fresh), "a hit can be told by its time, so this test sees one"
    assert told < 0.3 * saved, (seen, fresh, own)


@pytest.mark.parametrize("salt", ["", "team"])
def test_what_one_router_had_computed_another_knows(deploy: Deploy, salt: str) -> None:
    """From the workers' events, which name salted blocks alike to all routers of a deployment."""
    deployment = deploy(prefill=0, decode=2, routers=2, router={"secret": "of this test"})
    first, second = deployment.routers
    prompts = [random_prompt(80, seed=seed) for seed in range(6)]
    with new_client(first.url) as client:
        workers = [completion(client, prompt, salt=salt).decode for prompt in prompts]
    blocks = len(prompts) * (len(prompts[0]) // 8)
    eventually(lambda: metrics_of(second.url)["penstock_router_index_blocks"] >= blocks, "the events' arrival")
    with new_client(second.url) as client:
        replies = [completion(client, prompt, salt=salt) for prompt in prompts]
    assert [reply.decode for reply in replies] == workers
    assert all(cached(reply) > 64 for reply in replies)
    assert prediction_outcomes(second.url) == {"exact": len(prompts)}
