"""Workers that read what another has cached: right answers over every wire, whatever the source does."""

import itertools
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec.structs import replace

from penstock.protocol import Done, GenerateRequest, Sample, SamplingParams, Tokens
from tests.e2e.client import completion, new_client, random_prompt
from tests.e2e.conftest import Deploy, need_wire
from tests.e2e.deployment import WIRES, Deployment, Worker
from tests.e2e.processes import eventually, freeze, send_signal, thaw
from tests.e2e.stopwatch import Stopwatch
from tests.worker.requests import answer

PROMPT = tuple(random_prompt(85, seed=1))
CACHED_BLOCKS = 10
"""Full blocks of its first 84 tokens; the last is computed for its logits."""

_numbers = itertools.count()


@pytest.fixture(scope="module", params=WIRES)
def trio(request: pytest.FixtureRequest, deploy_for_module: Deploy) -> Deployment:
    need_wire(request.param)
    return deploy_for_module(prefill=1, decode=2, wire=request.param)


@pytest.fixture
def salt(trio: Deployment) -> Iterator[str]:
    """Nobody has anything of it cached; nothing is left afterwards."""
    yield f"salt {next(_numbers)}"
    trio.assert_quiet()


def ask(worker: Worker, salt: str, *, prompt: tuple[int, ...] = PROMPT, **fields: Any) -> tuple[list[int], Done]:
    """Greedy tokens of one worker, and its account of them."""
    sampling = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    body = GenerateRequest(
        request_id=f"source-{next(_numbers)}", prompt=prompt, sampling=sampling, samples=(Sample(0, 1),), salt=salt
    )
    frames = answer(f"{worker.url}/generate", replace(body, **fields))
    assert isinstance(frames[-1], Done), frames[-1]
    return [token for frame in frames if isinstance(frame, Tokens) for token in frame.tokens], frames[-1]


def computed(worker: Worker) -> float:
    return worker.metric("penstock_prefill_tokens_total")


def test_what_another_worker_has_is_not_computed_again(trio: Deployment, salt: str) -> None:
    there, here = trio.decode
    expected, _ = ask(there, salt)
    before, sourced = computed(here), here.metric("penstock_sourced_blocks_total")
    tokens, done = ask(here, salt, source=there.url)
    assert len(set(tokens)) >= 8
    assert tokens == expected
    assert (done.sourced_blocks, done.cached_tokens) == (CACHED_BLOCKS, 80)
    assert computed(here) - before == 5
    assert here.metric("penstock_sourced_blocks_total") - sourced == CACHED_BLOCKS


def test_a_prefill_worker_reads_from_a_decode_worker(trio: Deployment, salt: str) -> None:
    there, here = trio.decode
    [prefill] = trio.prefill
    expected, _ = ask(there, salt)
    before = computed(prefill), computed(here)
    tokens, done = ask(here, salt, prefill=prefill.url, source=there.url)
    assert tokens == expected
    assert (computed(prefill) - before[0], computed(here) - before[1]) == (5, 0)
    assert (done.sourced_blocks, done.pulled_blocks, done.cached_tokens) == (0, 11, 80)


def test_a_decode_worker_goes_on_with_what_a_prefill_worker_computed_for_another(trio: Deployment, salt: str) -> None:
    """The other is lost; the prompt's KV survives where it was made."""
    there, here = trio.decode
    [prefill] = trio.prefill
    expected, _ = ask(there, salt, prefill=prefill.url)
    before = computed(here)
    tokens, done = ask(here, salt, source=prefill.url, samples=(Sample(0, 1, tuple(expected[:9])),))
    assert expected[:9] + tokens == expected
    assert done.sourced_blocks == CACHED_BLOCKS
    assert computed(here) - before == 5


def test_a_worker_that_is_its_own_source_computes(trio: Deployment, salt: str) -> None:
    here, there = trio.decode
    expected, _ = ask(there, salt)
    assert ask(here, salt, source=here.url)[0] == expected


@pytest.mark.parametrize("part", ["front", "engine", "both"])
def test_a_frozen_source_is_left_in_time(trio: Deployment, salt: str, part: str) -> None:
    there, here = trio.decode
    expected, _ = ask(there, salt)
    pids = {"front": there.pids[:1], "engine": there.pids[1:], "both": there.pids}[part]
    freeze(*pids)
    try:
        stopwatch = Stopwatch()
        tokens, done = ask(here, salt, source=there.url)
        assert tokens == expected
        assert stopwatch.elapsed_s < 3.0
        assert done.sourced_blocks == 0
    finally:
        thaw(*pids)
    trio.wait_ready()


def test_a_dead_source_costs_no_time(trio: Deployment, salt: str) -> None:
    there, here = trio.decode
    expected, _ = ask(there, salt)
    missed = here.metric("penstock_unsourced_requests_total")
    send_signal(there.process.front, signal.SIGKILL)
    there.process.wait_gone()
    stopwatch = Stopwatch()
    assert ask(here, salt, source=there.url)[0] == expected
    assert stopwatch.elapsed_s < 1.0
    assert here.metric("penstock_unsourced_requests_total") == missed + 1
    there.restart()
    trio.wait_ready()
    assert ask(here, f"{salt} again", source=there.url)[0] == expected, "a new process, an empty cache"


def test_small_pools_that_read_from_each_other_do_not_deadlock(deploy: Deploy) -> None:
    """1.5 prompts fit; 16 at once on each, for prompts that the other has had."""
    small = deploy(prefill=0, decode=2, engine={"num_blocks": 15})
    prompts = [tuple(random_prompt(60, seed=index)) for index in range(4)]
    alone = {prompt: ask(small.decode[0], "alone", prompt=prompt)[0] for prompt in prompts}

    def read(index: int) -> bool:
        here, there = small.decode if index % 2 else small.decode[::-1]
        prompt = prompts[(index // 2) % 4]
        return ask(here, "each other", prompt=prompt, source=there.url)[0] == alone[prompt]

    with ThreadPoolExecutor(32) as threads:
        assert all(threads.map(read, range(32)))
    assert sum(worker.metric("penstock_sourced_blocks_total") for worker in small.decode) > 0
    small.assert_quiet()


def test_a_stopped_decode_worker_hands_its_streams_over_with_their_kv(deploy: Deploy) -> None:
    """The grace is too short for them to finish; who goes on reads all that was computed, the answer's KV too."""
    pair = deploy(prefill=0, decode=2, worker={"drain_grace_s": 1.0, "source_wait_s": 5.0})
    options: dict[str, Any] = {"max_tokens": 900, "stream": True}
    with new_client(pair.url) as client, ThreadPoolExecutor(2) as threads:
        expected = completion(client, list(PROMPT), **options)
        salts = ("one", "two")  # nothing of the one is of use to the other
        asked = [threads.submit(completion, client, list(PROMPT), **options, salt=salt) for salt in salts]
        eventually(lambda: all(streams(worker) == 1 for worker in pair.decode), "a stream on each worker")
        eventually(lambda: all(computed(worker) >= len(PROMPT) for worker in pair.decode), "their prompts computed")
        leaving, staying = pair.decode
        before = computed(staying)
        send_signal(leaving.process.front, signal.SIGTERM)
        replies = [each.result() for each in asked]
        assert [reply.answers for reply in replies] == [expected.answers] * 2
        assert staying.metric("penstock_sourced_blocks_total") > CACHED_BLOCKS, "also blocks of the answer"
        assert computed(staying) - before < len(PROMPT)
        leaving.process.wait_gone()
    pair.assert_quiet()


def streams(worker: Worker) -> int:
    return int(worker.metric("penstock_open_streams"))
