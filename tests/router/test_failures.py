"""Workers that fail in every way a worker can: the client sees one unbroken answer, or an explicit error."""

import random
import time
from collections.abc import Callable
from functools import partial

import openai
import pytest

from tests.router import fake_worker as fake
from tests.router.conftest import TEXTS, StartRouter
from tests.router.fake_worker import FakeWorker, Script
from tests.router.serving import MESSAGES, LoopThread, RunningRouter, assert_nothing_is_left, stream_text, wait_until

Connect = Callable[[RunningRouter], openai.OpenAI]

LONG = [{"role": "user", "content": "A prompt of more than one block, so that a prefill worker is used. " * 2}]


BREAKS = {
    "killed before its first token": fake.die_after(0),
    "killed in mid-stream": fake.die_after(5),
    "closed without a last frame": fake.end_after(5),
    "stuck in a step": fake.stick_after(5),
    "garbage": fake.garbage_after(5),
    "a token below zero": fake.garbage_after(5, b'{"type":"tokens","sample":0,"position":5,"tokens":[-7]}'),
    "a token beyond all": fake.garbage_after(5, b'{"type":"tokens","sample":0,"position":5,"tokens":[%d]}' % 2**70),
    "a token beyond the model's": fake.garbage_after(
        5, b'{"type":"tokens","sample":0,"position":5,"tokens":[2147483647]}'
    ),
    "an unknown end": fake.garbage_after(5, b'{"type":"finished","sample":0,"reason":"banana"}'),
    "an end before the last token": fake.garbage_after(5, b'{"type":"finished","sample":0,"reason":"length"}'),
    "an end before the first token": fake.garbage_after(0, b'{"type":"finished","sample":0,"reason":"stop"}'),
    "a deadline that is far": fake.fail_after(5, "deadline_exceeded"),
    "a frame of more than a mebibyte": fake.pad(2**20),
    "unasked log-probabilities": fake.garbage_after(
        5, b'{"type":"tokens","sample":0,"position":5,"tokens":[7],"logprobs":[[-0.5,[]]]}'
    ),
    "more than was asked for": fake.garbage_after(
        5, b'{"type":"tokens","sample":0,"position":5,"tokens":%s}' % str([7] * 40_000).encode()
    ),
    "a gap in positions": fake.gap_after(5),
    "an engine error": fake.fail_after(5, "internal"),
    "its own loss": fake.fail_after(5, "worker_lost"),
}


@pytest.fixture
def client_of_two(
    start_router: StartRouter, worker: FakeWorker, second_worker: FakeWorker, connect: Connect
) -> openai.OpenAI:
    """Of a router in front of `worker` and `second_worker`."""
    return connect(start_router((worker, second_worker)))


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS.keys())
def test_a_broken_stream_goes_on_elsewhere(
    client_of_two: openai.OpenAI, worker: FakeWorker, second_worker: FakeWorker, broken: Script
) -> None:
    assert stream_text(client_of_two) == [TEXTS[0]]  # the SDK's first request takes it a second
    second_worker.scripts = worker.scripts  # whichever is asked first
    second_worker.requests = worker.requests = []
    worker.scripts.append(broken)
    started = time.monotonic()
    assert stream_text(client_of_two) == [TEXTS[0]]
    assert time.monotonic() - started < 2, "promise 4"
    assert not worker.scripts
    assert len(worker.requests) == 2


def test_an_end_that_was_to_be_ignored_is_none(
    client_of_two: openai.OpenAI, worker: FakeWorker, second_worker: FakeWorker
) -> None:
    whole = stream_text(client_of_two, max_tokens=9, extra_body={"ignore_eos": True})
    second_worker.scripts = worker.scripts
    worker.scripts.append(fake.garbage_after(5, b'{"type":"finished","sample":0,"reason":"stop"}'))
    assert stream_text(client_of_two, max_tokens=9, extra_body={"ignore_eos": True}) == whole


def test_log_probabilities_that_are_missing_come_from_elsewhere(
    client_of_two: openai.OpenAI, worker: FakeWorker, second_worker: FakeWorker, outputs: list[list[int]]
) -> None:
    second_worker.scripts = worker.scripts
    line = b'{"type":"tokens","sample":0,"position":5,"tokens":[%d]}' % outputs[0][5]
    worker.scripts.append(fake.garbage_after(5, line))
    stream = client_of_two.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, logprobs=True)
    logprobs = [len(choice.logprobs.content) for chunk in stream for choice in chunk.choices if choice.logprobs]
    assert sum(logprobs) == len(outputs[0]) - 1, "all but the end token"


def test_an_answer_goes_on_only_with_the_weights_that_it_began_with(
    start_router: StartRouter, worker: FakeWorker, second_worker: FakeWorker, connect: Connect
) -> None:
    worker.weights, second_worker.weights = "1", "2"
    second_worker.scripts = worker.scripts  # whichever is asked first
    worker.scripts.append(fake.die_after(5))
    assert stream_text(connect(start_router((worker, second_worker)))) == [TEXTS[0]]
    assert sorted([len(worker.requests), len(second_worker.requests)]) == [0, 2]


def test_a_prompt_whose_answer_has_not_begun_may_go_to_other_weights(
    start_router: StartRouter, worker: FakeWorker, second_worker: FakeWorker, connect: Connect
) -> None:
    worker.weights, second_worker.weights = "1", "2"
    second_worker.scripts = worker.scripts
    worker.scripts.append(fake.die_after(0))
    assert stream_text(connect(start_router((worker, second_worker)))) == [TEXTS[0]]
    assert [len(worker.requests), len(second_worker.requests)] == [1, 1]


def test_a_resume_carries_all_that_was_received(
    client_of_two: openai.OpenAI, worker: FakeWorker, second_worker: FakeWorker, outputs: list[list[int]]
) -> None:
    for one in (worker, second_worker):
        one.scripts.append(fake.die_after(5))
    # The stop string holds text back, which must still count as received.
    assert stream_text(client_of_two, stop=["The penstock carries wine"], seed=4) == [TEXTS[0]]
    requests = sorted([*worker.requests, *second_worker.requests], key=lambda request: len(request.samples[0].output))
    assert [list(request.samples[0].output) for request in requests] == [[], outputs[0][:5], outputs[0][:10]]
    first = requests[0]
    for resumed in requests[1:]:
        assert (resumed.prompt, resumed.sampling) == (first.prompt, first.sampling)
        assert resumed.samples[0].seed == first.samples[0].seed
        assert resumed.timeout_s <= first.timeout_s


def test_repeated_positions_are_dropped(client: openai.OpenAI, worker: FakeWorker, outputs: list[list[int]]) -> None:
    worker.scripts.append(fake.repeat_positions)
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, n=2, logprobs=True)
    assert [choice.message.content for choice in whole.choices] == [TEXTS[0], TEXTS[1]]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(outputs[0]) + len(outputs[1])
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.content or []) == len(outputs[0]) - 1


def test_each_of_n_samples_resumes_on_its_own(
    client_of_two: openai.OpenAI, worker: FakeWorker, second_worker: FakeWorker, outputs: list[list[int]]
) -> None:
    for one in (worker, second_worker):
        one.scripts.append(fake.die_after(2))
    assert stream_text(client_of_two, n=3) == list(TEXTS)
    requests = [*worker.requests, *second_worker.requests]
    resumed = [request for request in requests if request.samples[0].output]
    assert {len(request.samples) for request in resumed} == {1}
    assert {request.samples[0].index for request in resumed} == {0, 1, 2}
    for request in resumed:
        sample = request.samples[0]
        assert list(sample.output) == outputs[sample.index][: len(sample.output)]


def test_what_an_answer_that_resumed_teaches_is_its_own_length(
    start_router: StartRouter, worker: FakeWorker, outputs: list[list[int]], connect: Connect
) -> None:
    router = start_router((worker,))
    lengths: list[int] = []
    model = router.services.cluster.books.model
    model.answered = lambda **answer: lengths.append(answer["output_tokens"])  # type: ignore[method-assign]
    worker.scripts.append(fake.die_after(2))
    assert stream_text(connect(router), n=3) == list(TEXTS)
    assert sorted(lengths) == sorted(map(len, outputs)), "not three times that of the longest"


def test_a_finished_answer_whose_last_frames_were_lost_is_not_asked_for_again(
    client: openai.OpenAI, worker: FakeWorker, outputs: list[list[int]]
) -> None:
    worker.scripts.append(fake.die_after(len(outputs[0])))
    assert stream_text(client) == [TEXTS[0]]
    worker.scripts.append(fake.die_after(4))
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4)
    assert whole.choices[0].finish_reason == "length"
    assert len(worker.requests) == 2


def test_nor_is_it_an_error_after_the_last_attempt(
    start_router: StartRouter, worker: FakeWorker, outputs: list[list[int]], connect: Connect
) -> None:
    worker.scripts.append(fake.die_after(len(outputs[0])))
    router = start_router((worker,), max_attempts=1)
    assert stream_text(connect(router)) == [TEXTS[0]]
    assert router.services.metrics.replacements.labels(reason="worker_lost")._value.get() == 1, "it is noted"


def test_any_sequence_of_failures_ends_right_or_explicitly(
    start_router: StartRouter, start_worker: Callable[[], FakeWorker], connect: Connect
) -> None:
    """Two workers that break at random and one of each role that does not: hardly any request may fail."""
    workers = [start_worker() for _ in range(3)]
    router = start_router(tuple(workers), (start_worker(),))
    client = connect(router)
    random_ = random.Random(3)
    makers = (fake.die_after, fake.end_after, fake.garbage_after, fake.gap_after, fake.stick_after)
    failed, expected = 0, {1: [TEXTS[0]], 3: list(TEXTS)}
    for number in range(60):
        for worker in workers[:2]:
            worker.scripts.clear()
            for _ in range(random_.randrange(3)):
                num_tokens = random_.randrange(8)
                codes = ("prefill_lost", "transfer_failed", "worker_lost", "internal")
                broken = random_.choice([*makers, *[partial(fake.fail_after, code=code) for code in codes]])(num_tokens)
                worker.scripts.append(random_.choice([broken, broken, fake.busy]))
        n = random_.choice([1, 3])
        try:
            assert stream_text(client, messages=[{"role": "user", "content": f"{number} " * 30}], n=n) == expected[n]
        except openai.APIError:
            failed += 1
    assert failed <= 3
    assert sum(len(worker.requests) for worker in workers) > 100, "most requests were placed more than once"
    assert_nothing_is_left(router)


def test_a_lost_prefill_worker_is_replaced_by_another(
    start_router: StartRouter, start_worker: Callable[[], FakeWorker], connect: Connect
) -> None:
    decode, prefills = start_worker(), (start_worker(), start_worker())
    client = connect(start_router((decode,), prefills, policy="least-work"))
    decode.scripts.extend([fake.fail_after(0, "prefill_lost")] * 2)
    assert stream_text(client, messages=LONG) == [TEXTS[0]]
    used = [request.prefill for request in decode.requests]
    assert set(used[:2]) == {prefill.url for prefill in prefills}
    assert used[2] is None, "no prefill worker left: the decode worker does it alone"


def test_a_prompt_that_kills_prefill_workers_gets_two_of_them(
    start_router: StartRouter, start_worker: Callable[[], FakeWorker], connect: Connect
) -> None:
    decode, prefills = start_worker(), tuple(start_worker() for _ in range(4))
    client = connect(start_router((decode,), prefills, policy="least-work"))
    decode.scripts.extend([fake.fail_after(0, "prefill_died")] * 9)
    with pytest.raises(openai.APIError, match="a second worker was lost at the same place"):
        stream_text(client, messages=LONG)
    assert len({request.prefill for request in decode.requests}) == len(decode.requests) == 2


@pytest.mark.parametrize(("code", "num_tokens"), [("prefill_refused", 0), ("transfer_failed", 1)])
def test_a_prefill_worker_that_is_of_no_use_to_one_request_stays_for_others(
    start_router: StartRouter, start_worker: Callable[[], FakeWorker], connect: Connect, code: str, num_tokens: int
) -> None:
    decode, prefill = start_worker(), start_worker()
    router = start_router((decode,), (prefill,), policy="least-work")
    decode.scripts.append(fake.fail_after(num_tokens, code))
    assert stream_text(connect(router), messages=LONG) == [TEXTS[0]]
    assert [request.prefill for request in decode.requests] == [prefill.url, None]
    assert all(worker.losses == 0 for worker in router.services.cluster.workers)


def test_a_frozen_worker_is_left_within_the_promise(
    client_of_two: openai.OpenAI, worker: FakeWorker, second_worker: FakeWorker
) -> None:
    for one in (worker, second_worker):
        one.scripts.append(fake.freeze_after(3))
    started = time.monotonic()
    assert stream_text(client_of_two) == [TEXTS[0]]
    assert time.monotonic() - started < 5, "promise 4, here even for two freezes in a row"


def test_a_full_worker_makes_way_for_another(
    client_of_two: openai.OpenAI, worker: FakeWorker, second_worker: FakeWorker
) -> None:
    worker.scripts.append(fake.busy)
    second_worker.scripts.append(fake.busy)
    with pytest.raises(openai.InternalServerError) as caught:
        stream_text(client_of_two)
    assert caught.value.status_code == 503
    assert caught.value.code == "overloaded"
    assert caught.value.response.headers["retry-after"] == "7", "as the worker said"
    worker.scripts.append(fake.busy)
    assert stream_text(client_of_two) == [TEXTS[0]]
    assert stream_text(client_of_two) == [TEXTS[0]]


def test_a_stream_survives_when_all_others_are_full_for_a_moment(
    client_of_two: openai.OpenAI, worker: FakeWorker, second_worker: FakeWorker
) -> None:
    worker.scripts.extend([fake.die_after(3), fake.busy])
    second_worker.scripts.append(fake.busy)
    assert stream_text(client_of_two) == [TEXTS[0]]


def test_the_only_worker_is_used_again_once_it_is_back(client: openai.OpenAI, worker: FakeWorker) -> None:
    worker.scripts.append(fake.die_after(4))
    assert stream_text(client) == [TEXTS[0]]
    assert len(worker.requests) == 2


def test_attempts_are_bounded(client: openai.OpenAI, worker: FakeWorker) -> None:
    worker.scripts.extend([fake.die_after(1)] * 10)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "1"
    assert len(worker.requests) == 4


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_a_request_that_kills_workers_gets_two_of_them(
    client: openai.OpenAI, worker: FakeWorker, num_tokens: int
) -> None:
    worker.scripts.extend([fake.die_after(num_tokens), *[fake.die_after(0)] * 10])
    if num_tokens:
        worker.scripts.appendleft(fake.die_after(2))  # a loss elsewhere does not count
    with pytest.raises(openai.APIError, match="a second worker was lost at the same place") as caught:
        stream_text(client)
    assert caught.value.code == "worker_lost"
    assert len(worker.requests) == (3 if num_tokens else 2)


def test_so_does_a_request_for_several_answers(client: openai.OpenAI, worker: FakeWorker) -> None:
    """Each of which goes on alone."""
    worker.scripts.extend([fake.die_after(3), *[fake.die_after(0)] * 10])
    with pytest.raises(openai.APIError, match="a second worker was lost at the same place"):
        list(client.chat.completions.create(model="tiny", messages=MESSAGES, n=2, stream=True))
    assert len(worker.requests) <= 3, "the first, and at most one for each answer"


def test_a_stream_outlives_a_worker_s_death_and_another_s_silence_at_the_same_place(
    client: openai.OpenAI, worker: FakeWorker
) -> None:
    worker.scripts.extend([fake.die_after(3), fake.freeze_after(0), fake.freeze_after(0)])
    assert stream_text(client) == [TEXTS[0]]
    assert len(worker.requests) == 4


def test_workers_that_are_being_stopped_are_neither_lost_nor_the_requests_fault(
    start_router: StartRouter, start_worker: Callable[[], FakeWorker], connect: Connect
) -> None:
    workers = tuple(start_worker() for _ in range(3))
    stops = [fake.fail_after(0, "stopping")] * 2

    async def stop_the_first_two(stream: fake.Stream) -> None:
        await (stops.pop() if stops else fake.answer)(stream)

    for worker in workers:
        worker.scripts.append(stop_the_first_two)
    router = start_router(workers)
    assert stream_text(connect(router)) == [TEXTS[0]]
    assert router.services.metrics.replacements.labels(reason="stopping")._value.get() == 2
    assert all(worker.losses == 0 for worker in router.services.cluster.workers)


def test_a_stream_that_is_handed_over_goes_on_with_the_kv_of_the_worker_that_leaves(
    start_router: StartRouter, start_worker: Callable[[], FakeWorker], connect: Connect
) -> None:
    workers, prefill = (start_worker(), start_worker()), start_worker()
    leave = [fake.fail_after(3, "stopping")]

    async def first_leaves(stream: fake.Stream) -> None:
        await (leave.pop() if leave else fake.answer)(stream)

    for worker in workers:
        worker.scripts.append(first_leaves)
    router = start_router(workers, (prefill,), policy="least-work")
    assert stream_text(connect(router), messages=LONG) == [TEXTS[0]]
    [[began], [resumed]] = sorted((worker.requests for worker in workers), key=lambda all_: all_[0].source or "")
    assert (began.prefill, began.source) == (prefill.url, None)
    leaving = next(worker.url for worker in workers if worker.requests == [began])
    assert (resumed.prefill, resumed.source) == (None, leaving), "nothing is left to prefill"
    assert len(resumed.samples[0].output) == 3


def test_workers_that_cannot_be_reached_are_not_the_requests_fault(
    start_router: StartRouter, start_worker: Callable[[], FakeWorker], connect: Connect, worker_loop: LoopThread
) -> None:
    workers = [start_worker() for _ in range(3)]
    client = connect(start_router(tuple(workers), poll_s=60.0))
    for gone in workers[:2]:
        worker_loop.run(gone.stop())
    assert stream_text(client) == [TEXTS[0]]


def test_a_stream_that_cannot_go_on_ends_in_an_error_event(client: openai.OpenAI, worker: FakeWorker) -> None:
    worker.scripts.extend([fake.die_after(1)] * 10)
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    assert next(stream).choices[0].delta.role == "assistant"
    with pytest.raises(openai.APIError, match="try again") as caught:
        list(stream)
    assert caught.value.code == "worker_lost"


def test_no_worker_at_all_is_said_soon(start_router: StartRouter, connect: Connect) -> None:
    client = connect(start_router((), worker_wait_s=0.2))
    with pytest.raises(openai.InternalServerError, match="no decode worker") as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert caught.value.status_code == 503
    assert "retry-after" in caught.value.response.headers


def test_a_request_waits_for_a_worker_that_is_about_to_be_ready(
    start_router: StartRouter, worker: FakeWorker, connect: Connect, worker_loop: LoopThread
) -> None:
    router = start_router((worker,), poll_s=0.05)
    worker.ready = False
    wait_until(lambda: not router.services.cluster.has_ready("decode"), "the router's notice")
    client = connect(router)
    worker_loop.loop.call_soon_threadsafe(lambda: worker_loop.loop.call_later(0.3, setattr, worker, "ready", True))
    assert stream_text(client) == [TEXTS[0]]


@pytest.mark.parametrize(
    ("wire", "field"),
    [("prompt", "messages"), ("samples", "n"), ("samples[...].seed", "n"), ("sampling.max_tokens", "max_tokens")],
)
def test_a_worker_that_refuses_the_request_is_believed(
    client: openai.OpenAI, worker: FakeWorker, wire: str, field: str
) -> None:
    for stream in (True, False):
        worker.scripts.append(fake.refuse(wire))
        with pytest.raises(openai.BadRequestError, match="does not like it") as caught:
            client.chat.completions.create(model="tiny", messages=MESSAGES, stream=stream)
        assert caught.value.param == field, "the API's name"
        assert caught.value.code == "odd"
    assert len(worker.requests) == 2, "a request that is wrong is not tried elsewhere"


def test_one_frozen_stream_disturbs_no_other(client: openai.OpenAI, worker: FakeWorker) -> None:
    worker.scripts.append(fake.freeze_after(1))
    frozen = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    next(iter(frozen))
    started = time.monotonic()
    assert stream_text(client) == [TEXTS[0]]
    assert time.monotonic() - started < 1
    frozen.close()
