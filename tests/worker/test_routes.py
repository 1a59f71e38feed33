"""What a worker answers over HTTP, with a scripted engine behind a real front."""

import asyncio
import itertools
import json
from typing import Any

import aiohttp
import msgspec
import pytest
from msgspec.structs import replace

from penstock.errors import RequestError
from penstock.hop import Readiness, new_session
from penstock.protocol import (
    BlocksRequest,
    Done,
    Error,
    Events,
    Finished,
    Peer,
    Sample,
    SamplingParams,
    Ticket,
    Tokens,
    decode_frame,
)
from tests.worker.fake_engine import WANTED
from tests.worker.processes import WorkerProcess
from tests.worker.requests import answer, call, fetch, read_all, read_to_end, request, run


def test_generate_streams_tokens_in_order_and_ends_with_done(decode: WorkerProcess) -> None:
    frames = answer(f"{decode.url}/generate", request(max_tokens=7))
    assert [token for frame in frames if isinstance(frame, Tokens) for token in frame.tokens] == [*range(7)]
    assert frames[-2:] == [Finished(0, "length"), Done(cached_tokens=3)]


def test_requests_with_one_id_at_a_time_have_streams_of_their_own(decode: WorkerProcess) -> None:
    async def ask() -> list[list[Any]]:
        url = f"{decode.url}/generate"
        same = request(max_tokens=9)
        async with call(url, same) as first, call(url, replace(same, sampling=SamplingParams(max_tokens=4))) as second:
            return [await read_to_end(first), await read_to_end(second)]

    first, second = run(ask)
    assert [len([frame for frame in frames if isinstance(frame, Tokens)]) for frames in (first, second)] == [9, 4]


def test_open_stream_is_never_silent_for_longer_than_promised(decode: WorkerProcess) -> None:
    async def longest_gap_s() -> float:
        times = [asyncio.get_running_loop().time()]
        data = msgspec.json.encode(request("hang"))
        async with new_session() as session, session.post(f"{decode.url}/generate", data=data) as response:
            async for line in response.content:
                decode_frame(line)
                times.append(asyncio.get_running_loop().time())
                if len(times) == 12:
                    break
        return max(after - before for before, after in itertools.pairwise(times))

    # The fake engine beats every 0.1 s; this machine's tests may be late by as much.
    assert run(longest_gap_s) < 0.5


def test_disconnected_caller_cancels_in_the_engine_within_a_second(decode: WorkerProcess) -> None:
    body = request("hang")

    async def leave() -> None:
        async with call(f"{decode.url}/generate", body):
            decode.journal.expect("Generate", body)

    run(leave)
    decode.journal.expect("Cancel", body, within_s=1.0)


def test_request_past_its_deadline_ends_with_an_error_and_is_cancelled(decode: WorkerProcess) -> None:
    body = request("hang", timeout_s=0.3)
    assert [frame.code for frame in answer(f"{decode.url}/generate", body)] == ["deadline_exceeded"]
    decode.journal.expect("Cancel", body, within_s=1.0)


def test_reader_that_does_not_read_is_cancelled_and_others_go_on(decode: WorkerProcess) -> None:
    body = request("flood")

    async def ask() -> tuple[list[Any], list[Any]]:
        data = msgspec.json.encode(body)
        async with new_session() as session, session.post(f"{decode.url}/generate", data=data) as response:
            await asyncio.to_thread(decode.journal.expect, "Cancel", body, 10.0)
            other = await asyncio.to_thread(answer, f"{decode.url}/generate", request())
            return [decode_frame(line) async for line in response.content], other

    slow, other = run(ask)
    assert slow[-1] == Error(code="overloaded", message="the caller fell 64 frames behind")
    assert isinstance(other[-1], Done)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 400, None),
        (b"\xff\xfe", 400, None),
        (b'{"request_id": "\xff"}', 400, None),
        (b"[" * 100_000, 400, None),
        (b"{}", 400, "request_id"),
        (b'{"request_id": 1}', 400, "request_id"),
        (b" " * (2**18 + 1), 413, None),
    ],
)
def test_body_that_is_no_request_is_refused(decode: WorkerProcess, body: bytes, status: int, field: str | None) -> None:
    answered, text = fetch("POST", f"{decode.url}/generate", body)
    refusal = json.loads(text)
    assert (answered, refusal["field"]) == (status, field)
    assert refusal["message"]


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"max_tokens": 0}, "sampling.max_tokens"),
        ({"max_tokens": 1, "temperature": -1}, "sampling.temperature"),
        ({"max_tokens": 1, "heat": 1}, "sampling.heat"),
        ({}, "sampling.max_tokens"),
    ],
)
def test_wrong_field_is_named_with_its_path(decode: WorkerProcess, sampling: dict[str, Any], field: str) -> None:
    body = {"request_id": "r", "prompt": [1], "sampling": sampling, "samples": [{"index": 0, "seed": 0}]}
    status, text = fetch("POST", f"{decode.url}/generate", json.dumps(body).encode())
    assert (status, json.loads(text)["field"]) == (400, field)


def test_refusal_comes_before_any_header_and_names_the_field_to_the_hop(decode: WorkerProcess) -> None:
    with pytest.raises(RequestError, match="not below the vocabulary size 1000") as refused:
        answer(f"{decode.url}/generate", request(prompt=(1000,)))
    assert (refused.value.field, refused.value.status) == ("prompt", 400)


def test_lease_lasts_until_the_caller_closes(decode: WorkerProcess) -> None:
    body = request()

    async def hold() -> None:
        async with call(f"{decode.url}/prefill", body) as hop:
            assert hop.accepted.peer is not None
            positions = []
            async for frame in hop.frames():
                assert isinstance(frame, Ticket)
                positions.append(frame.first_position)
                if frame.last:
                    break
            assert positions == [0, 1, 2]
            with pytest.raises(TimeoutError):  # P keeps the call open, and with it the blocks
                await asyncio.to_thread(decode.journal.expect, "Cancel", body, 0.5)

    run(hold)
    decode.journal.expect("Cancel", body, within_s=1.0)


def test_lease_ends_after_lease_s_when_the_caller_stays_silent(prefill: WorkerProcess) -> None:
    body = request()
    frames = answer(f"{prefill.url}/prefill", body)
    assert frames[-1] == Error(code="prefill_lost", message="the lease of 0.3 s is over")
    prefill.journal.expect("Cancel", body, within_s=1.0)


def test_lease_does_not_begin_before_the_last_ticket(prefill: WorkerProcess) -> None:
    body = request("endless")
    with pytest.raises(TimeoutError):
        run(lambda: read_all(f"{prefill.url}/prefill", body), within_s=1.0)
    prefill.journal.expect("Cancel", body, within_s=1.0)


def test_blocks_are_looked_up_and_held_alike(prefill: WorkerProcess) -> None:
    body = BlocksRequest(request_id="blocks", hashes=(b"one", b"two"))
    frames = answer(f"{prefill.url}/blocks", body)
    assert [ticket.hash for ticket in frames[0].blocks] == [b"one", b"two"]
    assert frames[-1].code == "prefill_lost"
    prefill.journal.expect("Lookup", body)
    prefill.journal.expect("Cancel", body, within_s=1.0)


def test_generate_fetches_tickets_and_frees_the_prefill_worker_once_released(
    decode: WorkerProcess, prefill: WorkerProcess
) -> None:
    body = request(prefill=prefill.url, max_tokens=4)
    frames = answer(f"{decode.url}/generate", body)
    assert [token for frame in frames if isinstance(frame, Tokens) for token in frame.tokens] == [0, 1, 2, 3]
    prefill.journal.expect("Prefill", body)
    prefill.journal.expect("Cancel", body, within_s=0.25)  # sooner than its lease of 0.3 s would end
    decode.journal.expect("PeerArrived", body, frame="Accepted")
    decode.journal.expect("PeerArrived", body, frame="Ticket")


def test_prefill_worker_that_cannot_answer_ends_the_request_with_prefill_lost(decode: WorkerProcess) -> None:
    body = request(prefill="http://127.0.0.1:9")
    assert answer(f"{decode.url}/generate", body)[-1].code == "prefill_lost"
    assert "does not answer" in decode.journal.expect("PeerFailed", body)["reason"]


@pytest.mark.parametrize(("path", "reason"), [("/nowhere", "404"), ("/metrics#", "405"), ("", "the context")])
def test_refusal_by_the_prefill_worker_is_told_from_its_loss(
    decode: WorkerProcess, prefill: WorkerProcess, small: WorkerProcess, path: str, reason: str
) -> None:
    """The request is fine for this worker, and so the router's to place again without that one."""
    url = prefill.url + path if path else small.url
    body = request(prefill=url, prompt=(1,) * 300, max_tokens=5)
    frame = answer(f"{decode.url}/generate", body)[-1]
    assert frame.code == "prefill_refused"
    assert reason in frame.message
    decode.journal.expect("Cancel", body)


def test_error_of_the_prefill_worker_reaches_the_engine(decode: WorkerProcess, prefill: WorkerProcess) -> None:
    body = request("keep", prefill=prefill.url)
    assert answer(f"{decode.url}/generate", body)[-1].code == "prefill_lost"
    assert "the lease of 0.3 s is over" in decode.journal.expect("PeerFailed", body)["reason"]


@pytest.mark.parametrize("path", ["generate", "prefill"])
def test_a_source_is_asked_for_what_the_engine_wants_until_it_has_read_it(
    decode: WorkerProcess, prefill: WorkerProcess, path: str
) -> None:
    body = request(source=decode.url if path == "prefill" else prefill.url)
    asking, source = (prefill, decode) if path == "prefill" else (decode, prefill)
    last = answer(f"{asking.url}/{path}", body)[-1]
    assert isinstance(last, Done) if path == "generate" else last.code == "prefill_lost", "the lease is over"
    assert source.journal.expect("Lookup", body)["hashes"] == [hash_.decode() for hash_ in WANTED]
    source.journal.expect("Cancel", body, within_s=0.25)  # sooner than its lease of 0.3 s would end
    asking.journal.expect("PeerArrived", body, frame="Accepted")
    asking.journal.expect("PeerArrived", body, frame="Ticket")


@pytest.mark.parametrize(
    ("source", "reason"),
    [("http://127.0.0.1:9", "does not answer"), ("{url}/nowhere", "404"), ("{url}/events?", "405")],
)
def test_a_source_that_cannot_answer_is_the_engines_to_replace(
    decode: WorkerProcess, prefill: WorkerProcess, source: str, reason: str
) -> None:
    body = request(source=source.format(url=prefill.url))
    assert isinstance(answer(f"{decode.url}/generate", body)[-1], Done)
    assert reason in decode.journal.expect("PeerFailed", body)["reason"]


def test_the_prefill_worker_is_told_of_the_source(decode: WorkerProcess, prefill: WorkerProcess) -> None:
    body = request(prefill=prefill.url, source="http://127.0.0.1:9", max_tokens=4)
    assert isinstance(answer(f"{decode.url}/generate", body)[-1], Done)
    assert "does not answer" in prefill.journal.expect("PeerFailed", body)["reason"]


def test_leaving_while_the_prompt_is_computed_cancels_on_both_workers(
    decode: WorkerProcess, prefill: WorkerProcess
) -> None:
    body = request("hang", prefill=prefill.url)

    async def leave() -> None:
        async with call(f"{decode.url}/generate", body):
            await asyncio.to_thread(prefill.journal.expect, "Prefill", body)

    run(leave)
    decode.journal.expect("Cancel", body, within_s=1.0)
    prefill.journal.expect("Cancel", body, within_s=1.0)


def test_events_begin_with_a_snapshot_and_are_numbered_without_gaps(decode: WorkerProcess) -> None:
    async def subscribe() -> list[Events]:
        async with aiohttp.ClientSession() as session, session.get(f"{decode.url}/events") as response:
            lines = [await response.content.readline() for _ in range(5)]
            return [msgspec.json.decode(line, type=Events) for line in lines]

    events = run(subscribe)
    assert [frame.sequence for frame in events] == [0, 1, 2, 3, 4]
    assert events[0].snapshot
    assert events[0].stored[0].tokens == (1, 2, 3, 4)
    assert events[-1].load is not None
    assert events[-1].load.num_blocks == 20_000


def test_layout_tells_how_to_reach_the_cache(decode: WorkerProcess) -> None:
    status, body = fetch("GET", f"{decode.url}/layout")
    assert status == 200
    assert msgspec.json.decode(body, type=Peer).endpoints == {"none": b"here"}


def test_ready_tells_what_a_request_must_respect(decode: WorkerProcess) -> None:
    status, body = fetch("GET", f"{decode.url}/ready")
    assert status == 200
    said = msgspec.json.decode(body, type=Readiness)
    assert said == Readiness(True, 100_000, 64, block_size=4, step_tokens=512, layout=said.layout, weights="1")
    assert len(said.layout) == 16


def test_metrics_carry_our_names_and_those_of_vllm(decode: WorkerProcess) -> None:
    answer(f"{decode.url}/generate", request(samples=(Sample(0, 1), Sample(1, 2))))
    _, body = fetch("GET", f"{decode.url}/metrics")
    values = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
    labels = '{model_name="",role="decode"}'
    assert float(values[f"vllm:kv_cache_usage_perc{labels}"]) == 0.25
    assert float(values[f"vllm:prefix_cache_queries_total{labels}"]) == 13
    assert float(values[f"vllm:prefix_cache_hits_total{labels}"]) == 3
    assert float(values[f"penstock_pulled_blocks_total{labels}"]) == 2
    assert float(values['vllm:time_to_first_token_seconds_count{model_name=""}']) >= 1
    assert float(values['vllm:request_success_total{finished_reason="length",model_name=""}']) >= 2
