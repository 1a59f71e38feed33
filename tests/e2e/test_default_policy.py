"""What the router's own choices come to with real workers: hot prefixes spread, and KV outlives its worker."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.client import completion, new_client, random_prompt
from tests.e2e.conftest import Deploy
from tests.e2e.deployment import DEFAULT_POLICY, Deployment, Worker
from tests.e2e.processes import eventually, send_signal

HOT = random_prompt(600, seed=1)
"""Takes longer to compute than to read."""
READ, COMPUTED = "penstock_pulled_blocks_total", "penstock_prefill_tokens_total"
GENERATED = "vllm:generation_tokens_total"


@pytest.fixture(scope="module")
def trio(deploy_for_module: Deploy) -> Iterator[Deployment]:
    """Three decode workers. Their router has seen what work costs: also how much longer steps are for more streams."""
    cluster = deploy_for_module(prefill=0, decode=3, router=DEFAULT_POLICY)
    with new_client(cluster.url) as client, ThreadPoolExecutor(9) as threads:
        list(threads.map(lambda seed: completion(client, random_prompt(300, seed=seed), max_tokens=128), range(10, 28)))
    yield cluster
    cluster.assert_quiet()


def sourced(worker: Worker) -> float:
    return worker.metric("penstock_sourced_blocks_total")


def generated(cluster: Deployment) -> float:
    return sum(worker.metric(GENERATED) for worker in cluster.decode)


def busy(cluster: Deployment) -> list[Worker]:
    return [worker for worker in cluster.decode if worker.metric("penstock_open_streams")]


def test_a_hot_prefix_spreads_by_being_read(trio: Deployment) -> None:
    """One worker has it, and more is asked for at once than that one could soon compute."""
    prompts = [[*HOT, *random_prompt(300, seed=seed)] for seed in range(30, 38)]
    with new_client(trio.url) as client, ThreadPoolExecutor(len(prompts)) as threads:
        expected = [completion(client, prompt, salt=f"alone {index}") for index, prompt in enumerate(prompts)]
        completion(client, HOT, max_tokens=1)
        before = sum(map(sourced, trio.decode))
        replies = list(threads.map(lambda prompt: completion(client, prompt), prompts))
    assert [reply.answers for reply in replies] == [reply.answers for reply in expected]
    assert sum(map(sourced, trio.decode)) - before >= len(HOT) // 8


def test_a_dead_worker_s_stream_goes_on_with_kv_that_another_has(trio: Deployment) -> None:
    """Two of three workers run a stream with the same prompt; when one dies, the third reads it from the other: as a
    source, or by its tickets, since any worker may compute for another what little is left."""
    options: dict[str, Any] = {"max_tokens": 900, "stream": True, "salt": "survives"}
    with new_client(trio.url) as client, ThreadPoolExecutor(2) as threads:
        expected = completion(client, HOT, **options | {"salt": "alone"})
        before = generated(trio)
        streams = [threads.submit(completion, client, HOT, **options)]
        eventually(lambda: generated(trio) > before, "the first stream")  # now only its worker has KV of the prompt
        streams.append(threads.submit(completion, client, HOT, **options))
        eventually(lambda: len(busy(trio)) == 2, "the second stream on another worker")
        dying = busy(trio)[0]
        [idle] = set(trio.decode) - set(busy(trio))
        surviving = [worker for worker in trio.decode if worker is not dying]
        read, computed = idle.metric(READ), sum(worker.metric(COMPUTED) for worker in surviving)
        send_signal(dying.process.engine, signal.SIGKILL)
        replies = [stream.result() for stream in streams]
        assert [reply.answers for reply in replies] == [expected.answers] * 2
        assert idle.metric(READ) - read >= len(HOT) // 8
        assert sum(worker.metric(COMPUTED) for worker in surviving) - computed < len(HOT) / 2
    dying.process.wait_gone()
    dying.restart()
    trio.wait_ready()
