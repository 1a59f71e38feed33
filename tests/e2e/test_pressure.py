"""Too little memory for all at once, and prompts that take long: slow is neither stuck nor lost."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from penstock.protocol import SILENT_S
from tests.e2e.client import Reply, completion, new_client, random_prompt
from tests.e2e.conftest import Deploy
from tests.e2e.deployment import Deployment, metrics_of
from tests.e2e.model import write_model
from tests.e2e.processes import freeze, thaw

PULSE_S = 0.9
PULSES = 4


def test_sixteen_prompts_against_pools_of_one_and_a_half(deploy: Deploy) -> None:
    """No deadlock: all are answered, and rightly. A prompt takes 8 blocks, with its answer 10."""
    router = {"max_context_tokens": 96}
    small = deploy(engine={"num_blocks": 12}, router=router)
    alone = deploy(prefill=0)
    prompts = [random_prompt(60, seed=index) for index in range(16)]

    def ask(of: Deployment) -> Callable[[list[int]], Reply]:
        client = new_client(of.url)
        return lambda prompt: completion(client, prompt, max_tokens=20)

    with ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(ask(small), prompts))
    assert [reply.answers for reply in replies] == [reply.answers for reply in map(ask(alone), prompts)]
    handed_over = sum(reply.prefill is not None for reply in replies)
    assert handed_over >= 8  # not all: while P is slow to come to them, D may compute some
    assert small.decode[0].metric("penstock_pulled_blocks_total") >= 8 * handed_over
    small.assert_quiet()


@pytest.mark.parametrize("steps", ["many-steps", "one-step"])
def test_a_long_prompt_is_not_mistaken_for_a_frozen_worker(
    deploy: Deploy, tmp_path_factory: pytest.TempPathFactory, steps: str
) -> None:
    """P's engine is halted again and again, each time for less than makes it lost, so its prompt takes many seconds."""
    options: dict[str, Any] = {}
    if steps == "one-step":
        wide = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 64}
        options = {"model": write_model(tmp_path_factory.mktemp("wide") / "model", **wide)}
        options["engine"] = {"max_step_tokens": 4096}
    slow = deploy(**options)
    client = new_client(slow.url)
    prefill = slow.prefill[0]
    answered = threading.Event()
    halts = 0

    def halt() -> None:
        nonlocal halts
        while halts < PULSES and not answered.is_set():
            freeze(prefill.process.engine)
            answered.wait(PULSE_S)
            thaw(prefill.process.engine)
            halts += 1
            answered.wait(0.2)

    prompt = random_prompt(4000, seed=1)
    with ThreadPoolExecutor(1) as threads:
        halting = threads.submit(halt)
        reply = completion(client, prompt, max_tokens=4)
        halts_until_answer = halts
        answered.set()
        halting.result()
    assert halts_until_answer * PULSE_S > SILENT_S, "the prompt was computed too fast: this test proves nothing"
    assert reply.prefill == prefill.url
    assert prefill.metric("penstock_prefill_tokens_total") == len(prompt)
    assert slow.decode[0].metric("penstock_prefill_tokens_total") == 0
    assert metrics_of(slow.url).get("penstock_router_failed_placements_total", 0) == 0
