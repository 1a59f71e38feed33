"""The parts of bench.gateways: echo workers answer what was asked, and the client takes nothing less for an answer."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import psutil
import pytest

from bench.load import Timing, at_once, one_by_one
from bench.peers.gateways import OURS, OURS_TEXT, Gateway, chat_request, echo_worker, starters

PACE_S = 0.01


@pytest.fixture(scope="module")
def worker() -> Iterator[int]:
    with echo_worker(PACE_S) as port:
        yield port


def test_an_echo_worker_paces_its_tokens(worker: int) -> None:
    (timing,) = asyncio.run(one_by_one(worker, lambda: chat_request("echo", 10), 1, 10))
    assert timing.first_token_s < timing.total_s
    assert timing.total_s >= 9 * PACE_S


def test_an_answer_with_another_number_of_tokens_is_no_answer(worker: int) -> None:
    with pytest.raises(SystemExit, match="a gateway answered"):
        asyncio.run(one_by_one(worker, lambda: chat_request("echo", 3), 1, 4))


@pytest.mark.parametrize("said", [b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", b""], ids=["error", "cut"])
def test_an_error_or_a_cut_connection_ends_the_benchmark(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(2**16)
            connection.sendall(said)
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(SystemExit, match="a gateway"):
            asyncio.run(one_by_one(server.getsockname()[1], lambda: chat_request("echo", 1), 1, 1))


def test_load_stops_in_time_and_counts_what_was_answered(worker: int) -> None:
    count, took = asyncio.run(at_once(worker, lambda: chat_request("echo", 1), 1, in_flight=4, seconds=0.2))
    assert count >= 4
    assert 0.2 <= took < 5
    assert asyncio.run(at_once(worker, lambda: chat_request("echo", 1), 1, in_flight=4, seconds=60, most=20))[0] == 20


@pytest.mark.parametrize("name", [OURS, OURS_TEXT])
def test_our_router_answers_from_echo_workers(worker: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_BENCH_GATEWAYS", raising=False)
    assert set(starters()) == {OURS, OURS_TEXT}
    with starters()[name]([worker]) as gateway:
        for num_tokens in (1, 8):
            assert asyncio.run(
                one_by_one(gateway.port, lambda asked=num_tokens: gateway.make(asked), 3, num_tokens)  # type: ignore[misc]
            )
        assert gateway.cpu_s() > 0
        assert gateway.memory_mb() > 10


def test_what_a_gateway_adds_is_over_the_median_of_its_worker() -> None:
    gateway = Gateway("g", 0, psutil.Process(), lambda _: b"")
    gateway.direct = [Timing(0.001, 0.002), Timing(0.001, 0.002), Timing(0.5, 0.5)]
    gateway.timings = [Timing(0.003, 0.003)] * 99 + [Timing(0.101, 0.2)]
    assert gateway.added_ms("first_token_s", 50) == pytest.approx(2.0)
    assert gateway.added_ms("total_s", 50) == pytest.approx(1.0)
    assert gateway.added_ms("first_token_s", 99.9) == pytest.approx(90.2, abs=12)
