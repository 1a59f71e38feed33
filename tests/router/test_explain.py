"""`penstock explain` against a running router."""

import json
import urllib.request
from collections.abc import Callable

import openai
import pytest

from penstock.cli import main
from tests.router import fake_worker as fake
from tests.router.conftest import StartRouter
from tests.router.fake_worker import FakeWorker
from tests.router.serving import RunningRouter, wait_until


def test_a_placement_is_explained(
    router: RunningRouter, worker: FakeWorker, client: openai.OpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    client.completions.create(model="tiny", prompt="why there?", extra_headers={"x-request-id": "asked"})
    assert main(["explain", "asked", "--url", router.url]) == 0
    out = capsys.readouterr().out
    assert out.startswith("asked: ")
    assert "placed by seconds" in out
    assert "first token after" in out
    assert worker.url in out
    assert "for each of" not in out
    client.completions.create(model="tiny", prompt="why there?", n=2, extra_headers={"x-request-id": "asked"})
    assert main(["explain", "asked", "--url", router.url]) == 0
    assert " to answer, for each of 2 answers; " in capsys.readouterr().out


def test_what_was_placed_by_load_is_said_to_be(
    start_router: StartRouter,
    worker: FakeWorker,
    connect: Callable[[RunningRouter], openai.OpenAI],
    capsys: pytest.CaptureFixture[str],
) -> None:
    router = start_router((worker,), policy="least-work")
    connect(router).completions.create(model="tiny", prompt="why there?", extra_headers={"x-request-id": "asked"})
    assert main(["explain", "asked", "--url", router.url]) == 0
    assert "placed by load" in capsys.readouterr().out


def test_a_stream_that_went_on_elsewhere_is_explained_as_such(
    router: RunningRouter, client: openai.OpenAI, worker: FakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.scripts.append(fake.die_after(3))
    headers = {"x-request-id": "asked"}
    list(client.completions.create(model="tiny", prompt="why there?", stream=True, extra_headers=headers))
    assert main(["explain", "asked", "--url", router.url]) == 0
    request, before, came, *_ = capsys.readouterr().out.splitlines()
    assert " prompt tokens and 3 of its answer, about " in request
    assert f"the one before failed: {worker.url}/generate was cut" in before
    assert came.startswith("next token after ")
    worker.scripts.extend([fake.die_after(0)] * 2)
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="tiny", prompt="why there?", extra_headers=headers)
    assert main(["explain", "asked", "--url", router.url]) == 0
    assert f"\nit failed: {worker.url}/generate was cut" in capsys.readouterr().out


def test_a_worker_of_another_model_is_named_wherever_one_may_look(
    start_router: StartRouter,
    worker: FakeWorker,
    second_worker: FakeWorker,
    connect: Callable[[RunningRouter], openai.OpenAI],
    capsys: pytest.CaptureFixture[str],
) -> None:
    router = start_router((worker, second_worker))
    second_worker.model = "another"  # another process at the same address
    wait_until(lambda: len(router.services.cluster.snapshot().decode) == 1, "the router's notice")
    for _ in range(4):
        headers = {"x-request-id": "asked"}
        connect(router).completions.create(model="tiny", prompt="why there?", extra_headers=headers)
    assert not second_worker.requests
    assert main(["explain", "asked", "--url", router.url]) == 0
    assert f"not used now is {second_worker.url}: it serves another model than this router" in capsys.readouterr().out
    with urllib.request.urlopen(f"{router.url}/ready") as answer:
        workers = json.load(answer)["workers"]
    assert workers[worker.url] == {"role": "decode", "ready": True}
    assert workers[second_worker.url]["why"].startswith("it serves another model")
    with urllib.request.urlopen(f"{router.url}/metrics") as answer:
        odd = [line for line in answer.read().decode().splitlines() if line.startswith("penstock_router_worker_odd{")]
    assert odd == [f'penstock_router_worker_odd{{role="decode",what="model",worker="{second_worker.url}"}} 1.0']


def test_an_unknown_request_is_said_to_be_unknown(router: RunningRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "nobody", "--url", router.url]) == 1
    said = capsys.readouterr().err
    assert "HTTP 404: no placement of nobody is remembered" in said
    assert "ask the one that took the request" in said, "each router remembers its own"


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "asked", "--url", "http://127.0.0.1:1"]) == 1
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["explain", "asked"], ["chat"]])
@pytest.mark.parametrize("url", ["foo", "localhost:8000"])
def test_a_url_without_its_scheme_is_refused(command: list[str], url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--url", url]) == 2
    assert f"--url '{url}' must start with http:// or https://" in capsys.readouterr().err


def test_predictions_are_compared_with_what_came(router: RunningRouter, client: openai.OpenAI) -> None:
    for _ in range(3):
        client.completions.create(model="tiny", prompt="some words")
    metrics = router.services.metrics.render().decode()
    assert "penstock_router_ttft_prediction_error_seconds_count 3.0" in metrics
    assert router.services.journal.alarms == ()
