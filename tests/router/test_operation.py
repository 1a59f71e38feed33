"""Health, readiness, metrics and draining, for those who run the router; and what its process must not import."""

import json
import logging
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from penstock.errors import ConfigError
from penstock.listen import free_port
from penstock.router.config import RouterConfig
from penstock.router.http import is_from_this_machine
from tests.router.conftest import StartRouter
from tests.router.fake_worker import FakeWorker
from tests.router.serving import RunningRouter, running_router, wait_until

Connect = Callable[[RunningRouter], openai.OpenAI]

MESSAGES = [{"role": "user", "content": "Hello"}]


def get(router: RunningRouter, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"{router.url}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_readiness_follows_the_workers(start_router: StartRouter, worker: FakeWorker) -> None:
    router = start_router((worker,), poll_s=0.05)
    status, body = get(router, "/ready")
    assert status == 200
    assert json.loads(body)["workers"] == {worker.url: {"role": "decode", "ready": True}}
    worker.ready = False
    wait_until(lambda: get(router, "/ready")[0] == 503, "unreadiness")
    assert get(router, "/health")[0] == 200, "the router itself is well"


def test_a_worker_that_has_left_is_in_no_metric(start_router: StartRouter, worker: FakeWorker) -> None:
    """Its last value would be read as its state for ever."""
    router = start_router((worker,))
    router.services.metrics.event_errors.labels(worker.url, "gap").inc()
    assert f'penstock_router_worker_ready{{role="decode",worker="{worker.url}"}} 1.0' in get(router, "/metrics")[1]
    router.server._loop.call_soon_threadsafe(router.services.cluster.remove, worker.url)
    wait_until(lambda: worker.url not in get(router, "/metrics")[1], "the end of its series")


def test_a_drained_router_is_unready_but_still_serves(router: RunningRouter, client: openai.OpenAI) -> None:
    assert get(router, "/drain", "POST") == (200, '{"running":0}')
    assert get(router, "/ready")[0] == 503
    assert client.chat.completions.create(model="tiny", messages=MESSAGES).choices


def test_the_log_tells_each_change_of_state_once(
    start_router: StartRouter, worker: FakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock.router")

    def said(line: str) -> int:
        return caplog.messages.count(line)

    router = start_router((worker,), poll_s=0.02)
    wait_until(lambda: said(f"ready: {router.url}/v1") == 1, "the ready line")
    assert said(f"listening at {router.url}") == 1
    worker.ready = False
    wait_until(lambda: said(f"not ready: {router.url} waits for a decode worker") == 2, "the line of its loss")
    worker.ready = True
    wait_until(lambda: said(f"ready: {router.url}/v1") == 2, "the second ready line")
    assert said(f"decode worker {worker.url} is ready") == 2
    assert said(f"decode worker {worker.url} is not ready: it answers HTTP 503") == 1


def test_the_log_tells_of_dead_and_missing_workers(model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "penstock.router")
    dead = f"http://127.0.0.1:{free_port()}"
    with running_router(RouterConfig(model=str(model_folder), port=0, decode=dead, poll_s=0.02)):
        wait_until(lambda: f"decode worker {dead} is not ready: Cannot connect" in caplog.text, "the line")
    assert "no decode worker is named" not in caplog.text
    with running_router(RouterConfig(model=str(model_folder), port=0)):
        wait_until(lambda: "no decode worker is named" in caplog.text, "the line")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x-forwarded-for", "10.0.0.9"),
        ("x-forwarded-for", "2001:db8::9"),
        ("x-forwarded-for", "127.0.0.1, 10.0.0.9"),
        ("origin", "http://127.0.0.1:8000"),
        ("origin", "null"),
    ],
)
def test_only_this_machine_may_drain_the_router(router: RunningRouter, name: str, said: str) -> None:
    """As behind a proxy of this machine, which says whom it speaks for; or from a web page that is shown there."""
    asked = urllib.request.Request(f"{router.url}/drain", method="POST", headers={name: said})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=5)
    with caught.value as answer:
        assert answer.code == 403
        assert json.loads(answer.read())["error"]["code"] == "forbidden"
    assert get(router, "/ready")[0] == 200


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("127.0.0.1", 1), True),
        (("127.0.0.6", 1), False),
        (("::1", 1), True),
        (("::ffff:127.0.0.1", 1), True),
        (("::ffff:10.0.0.9", 1), False),
        (("10.0.0.9", 1), False),
        (("2001:db8::9", 1), False),
        (("somebody", 1), False),
        (None, False),
    ],
)
def test_the_addresses_of_this_machine(client: tuple[str, int] | None, expected: bool) -> None:
    assert is_from_this_machine({"type": "http", "client": client}) is expected


def test_however_often_it_is_asked_a_router_probes_once(
    start_router: StartRouter, start_worker: Callable[[], FakeWorker]
) -> None:
    decode, prefill = start_worker(), start_worker()
    router = start_router((decode,), (prefill,))
    with ThreadPoolExecutor(5) as pool:
        together = list(pool.map(lambda _: get(router, "/probe", "POST"), range(5)))
    assert {*together, get(router, "/probe", "POST")} == {together[0]}
    assert together[0][0] == 200
    assert len(decode.requests) == 1


def test_metrics_count_what_happened(router: RunningRouter, client: openai.OpenAI, worker: FakeWorker) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert answer.usage is not None
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=[])
    lines = set(get(router, "/metrics")[1].splitlines())
    expected = {
        'penstock_router_requests_total{endpoint="chat",status="200"} 1.0',
        'penstock_router_requests_total{endpoint="chat",status="400"} 1.0',
        "penstock_router_running_requests 0.0",
        f"penstock_router_prompt_tokens_total {float(answer.usage.prompt_tokens)}",
        f"penstock_router_output_tokens_total {float(answer.usage.completion_tokens)}",
        "penstock_router_cached_prompt_tokens_total 3.0",
        "penstock_router_time_to_first_token_seconds_count 1.0",
        'penstock_router_placements_total{kind="decode_alone"} 1.0',
        f'penstock_router_worker_ready{{role="decode",worker="{worker.url}"}} 1.0',
        f'penstock_router_worker_streams{{role="decode",worker="{worker.url}"}} 0.0',
    }
    assert not expected - lines


def test_the_router_loads_neither_torch_nor_transformers_and_no_grpc_unless_asked() -> None:
    banned = ["torch", "transformers", "numpy", "grpc", "penstock.engine", "penstock.prefill", "penstock.decode"]
    script = f"import penstock.router.main, sys; print([name for name in {banned} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_long_prompt_holds_up_nobody_else(start_router: StartRouter, worker: FakeWorker, connect: Connect) -> None:
    """A long text takes long to tokenize, while others are served."""
    router = start_router((worker,), max_context_tokens=10_000)
    client = connect(router)
    refused: list[openai.BadRequestError] = []

    def ask() -> None:
        with pytest.raises(openai.BadRequestError, match="context holds 10000") as caught:
            client.completions.create(model="tiny", prompt="The penstock carries water. " * 20_000)
        refused.append(caught.value)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: len(router.services.lifelines) == 1, "the request's arrival")
    served = 0
    while not refused:
        assert get(router, "/health")[0] == 200
        served += 1
    thread.join()
    assert served > 10, "tokenizing runs aside"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"decode": "127.0.0.1:9"}, "must start with http"),
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"timeout_s": 0.0}, "timeout_s must be more than 0"),
    ],
)
def test_a_wrong_configuration_is_refused_at_start(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        RouterConfig(**settings)  # type: ignore[arg-type]


def test_the_context_that_workers_have_memory_for_is_the_limit(
    start_router: StartRouter, worker: FakeWorker, connect: Connect
) -> None:
    """The model could take 512 tokens."""
    worker.max_context_tokens = 40
    client = connect(start_router((worker,)))
    client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert len(worker.requests[0].prompt) + worker.requests[0].sampling.max_tokens == 40
    for prompt in ([1] * 40, "word " * 2000):
        with pytest.raises(openai.BadRequestError, match=r"context holds,? 40") as caught:
            client.completions.create(model="tiny", prompt=prompt)
        assert caught.value.code == "context_length_exceeded"


def test_more_answers_than_workers_batch_are_refused_before_placement(
    start_router: StartRouter, worker: FakeWorker, connect: Connect
) -> None:
    worker.max_samples = 2
    client = connect(start_router((worker,)))
    assert len(client.completions.create(model="tiny", prompt=["a", "b"], n=2).choices) == 4, "two prompts, two batches"
    worker.requests.clear()
    for ask in (
        lambda: client.chat.completions.create(model="tiny", messages=MESSAGES, n=3),
        lambda: client.completions.create(model="tiny", prompt=["a", "b"], n=3),
    ):
        with pytest.raises(openai.BadRequestError, match="n=3 asks for more than 2 answers to one prompt") as caught:
            ask()
        assert caught.value.param == "n"
    assert not worker.requests
