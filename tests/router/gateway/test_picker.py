"""An endpoint picker as a gateway sees it: real gRPC, real routers beside fake workers."""

import json
import math
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from penstock.errors import ConfigError
from penstock.listen import free_port
from penstock.router.app import build_app
from penstock.router.config import RouterConfig
from penstock.router.flow.keys import new_key
from penstock.router.flow.quota import Level
from penstock.router.gateway.messages import HealthCheckRequest, HealthCheckResponse, ProcessingRequest, kind_of
from tests.router.conftest import TEXTS
from tests.router.fake_worker import FakeWorker, busy, refuse
from tests.router.gateway.conftest import Site
from tests.router.gateway.envoy import DESTINATION, Envoy, destination_of, first_message, header_map
from tests.router.serving import LoopThread, assert_nothing_is_left, hold, wait_until

CHAT = "/v1/chat/completions"
TLS = Path(__file__).parent / "tls"
"""A certificate for 127.0.0.1 that nobody trusts."""
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
StartSite = Callable[..., Site]


def text_of(body: bytes) -> str:
    found: str = json.loads(body)["choices"][0]["message"]["content"]
    return found


def requests_of(decode: tuple[FakeWorker, ...]) -> list[int]:
    return [len(worker.requests) for worker in decode]


@pytest.mark.parametrize("trailers", [False, True], ids=["", "trailers"])
def test_the_picked_endpoint_answers(site: Site, decode: tuple[FakeWorker, ...], trailers: bool) -> None:
    answer = site.envoy.post(CHAT, BODY, trailers=trailers)
    assert (answer.status, text_of(answer.body)) == (200, TEXTS[0])
    picked = answer.sent_headers[DESTINATION]
    assert answer.headers["x-penstock-decode"] == site.beside[picked].services.config.beside
    assert sum(requests_of(decode)) == 1
    assert_nothing_is_left(site.picker)


def test_a_stream_passes_and_is_counted_while_it_does(
    site: Site, decode: tuple[FakeWorker, ...], worker_loop: LoopThread
) -> None:
    for worker in decode:
        worker.gate = hold(worker_loop)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(site.envoy.post, CHAT, BODY | {"stream": True}, headers={"x-request-id": "mine"})
        books = site.picker.services.cluster.books
        wait_until(
            lambda: [books.in_flight(worker.url) for worker in decode] in ([(1, 0), (0, 0)], [(0, 0), (1, 0)]),
            "the first token, after which no prompt waits",
        )
        assert site.picker.services.bodies.taken == 0, "the request's body is gone"
        for worker in decode:
            worker_loop.call(worker.gate.set)  # type: ignore[union-attr]
        events = answer.result(10).body.split(b"\n\n")
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events if event.startswith(b"data: {")]
    assert "".join(delta.get("content") or "" for delta in deltas) == TEXTS[0]
    assert events[-2:] == [b"data: [DONE]", b""]
    decision = site.picker.services.journal.find("mine")
    assert decision is not None
    assert decision.ttft_s is not None, "the prediction was compared with what came"
    assert_nothing_is_left(site.picker)


def test_a_prompt_whose_answer_comes_in_one_piece_does_not_stand_in_the_queue_till_then(
    site: Site, decode: tuple[FakeWorker, ...], worker_loop: LoopThread
) -> None:
    for worker in decode:
        worker.gate = hold(worker_loop)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(site.envoy.post, CHAT, BODY)
        wait_until(lambda: sum(requests_of(decode)) == 1, "the request's arrival")
        books = site.picker.services.cluster.books
        in_flight = [(0, 0), (1, 0)]
        wait_until(
            lambda: sorted(books.in_flight(worker.url) for worker in decode) == in_flight, "its first token's time"
        )
        for worker in decode:
            worker_loop.call(worker.gate.set)  # type: ignore[union-attr]
        assert answer.result(10).status == 200
    assert_nothing_is_left(site.picker)


@pytest.mark.parametrize("bound", [{"max_queued": 1}, {"max_queued_tokens": 30}])
def test_who_comes_when_all_are_full_waits_or_is_refused(
    start_site: StartSite, decode: tuple[FakeWorker, ...], worker_loop: LoopThread, bound: dict[str, int]
) -> None:
    for worker in decode:
        worker.max_samples = 1
        worker.gate = hold(worker_loop)
    site = start_site(**bound)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(site.envoy.post, CHAT, BODY | {"stream": True}) for _ in range(2)]
        wait_until(lambda: requests_of(decode) == [1, 1], "two streams, as many as there is room for")
        answers.append(pool.submit(site.envoy.post, CHAT, BODY | {"stream": True}))
        wait_until(lambda: len(site.picker.services.placer.gate) == 1, "one that waits")
        refused = site.envoy.post(CHAT, BODY)
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after-ms"]) > 0
        assert refused.headers["x-should-retry"] == "true"
        assert requests_of(decode) == [1, 1], "the one that waits has not reached a worker"
        for worker in decode:
            worker_loop.call(worker.gate.set)  # type: ignore[union-attr]
        assert [answer.result(10).status for answer in answers] == [200, 200, 200]
    assert_nothing_is_left(site.picker)


def test_the_endpoint_is_told_what_is_left_of_the_deadline_and_the_requests_id(site: Site) -> None:
    headers = {"timeout": "5", "x-request-id": "mine", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    answer = site.envoy.post(CHAT, BODY, headers=headers)
    assert 4 < float(answer.sent_headers["timeout"]) < 5
    assert (answer.sent_headers["x-request-id"], answer.headers["x-request-id"]) == ("mine", "mine")
    assert answer.sent_headers["traceparent"] == headers["traceparent"]
    assert site.picker.services.journal.find("mine") is not None, "penstock explain knows it"


def test_a_large_body_goes_and_comes_back_in_pieces(site: Site) -> None:
    prompt = [5] * 60_000
    answer = site.envoy.post("/v1/completions", {"model": "tiny", "prompt": prompt}, pieces=7)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    padded = json.dumps(BODY).encode() + b" " * 300_000
    assert site.envoy.post(CHAT, padded, pieces=7).status == 200


def test_requests_at_the_same_time_spread_over_the_endpoints(site: Site, decode: tuple[FakeWorker, ...]) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: site.envoy.post(CHAT, BODY | {"stream": True}), range(64)))
    assert {answer.status for answer in answers} == {200}
    first, second = requests_of(decode)
    assert first + second == 64
    assert min(first, second) >= 16
    assert_nothing_is_left(site.picker)


def test_the_prefill_worker_is_the_pickers(
    start_site: StartSite, decode: tuple[FakeWorker, ...], start_worker: Callable[[], FakeWorker]
) -> None:
    prefill = start_worker(), start_worker()
    site = start_site(prefill, policy="least-work", sidecar={"policy": "seconds"})
    for number in range(4):
        content = f"{number} blocks flow from the prefill pool to the decode pool. " * 4
        body = BODY | {"messages": [{"role": "user", "content": content}]}
        answer = site.envoy.post(CHAT, body, headers={"x-penstock-source": "10.0.0.1:1"})
        named = answer.sent_headers["x-prefiller-host-port"]
        assert answer.headers["x-penstock-prefill"] == f"http://{named}"
        assert "x-penstock-source" not in answer.sent_headers
    assert {request.prefill for worker in decode for request in worker.requests} <= {worker.url for worker in prefill}


def test_a_short_prompt_is_left_to_the_decode_worker(
    start_site: StartSite, start_worker: Callable[[], FakeWorker]
) -> None:
    site = start_site((start_worker(),), policy="least-work", min_prefill_tokens=1000)
    answer = site.envoy.post(CHAT, BODY, headers={"x-prefiller-host-port": "10.0.0.1:1"})
    assert answer.status == 200
    assert f"http://{answer.sent_headers['x-prefiller-host-port']}" == answer.headers["x-penstock-decode"]
    assert "x-penstock-prefill" not in answer.headers


def test_a_dead_worker_is_not_picked(site: Site, decode: tuple[FakeWorker, ...], worker_loop: LoopThread) -> None:
    worker_loop.run(decode[0].stop())
    wait_until(lambda: not site.picker.services.cluster.is_ready(decode[0].url), "its loss")
    assert {site.envoy.post(CHAT, BODY).headers["x-penstock-decode"] for _ in range(4)} == {decode[1].url}
    worker_loop.run(decode[0].start(int(decode[0].url.rpartition(":")[2]), "127.0.0.2"))
    wait_until(lambda: site.picker.services.cluster.is_ready(decode[0].url), "its return")


def test_a_worker_without_the_router_beside_it_is_not_picked(site: Site, decode: tuple[FakeWorker, ...]) -> None:
    [(_, router), _] = site.beside.items()
    router.stop()
    wait_until(lambda: not site.picker.services.cluster.is_ready(decode[0].url), "unreadiness of its worker")
    assert site.envoy.post(CHAT, BODY).headers["x-penstock-decode"] == decode[1].url


def test_without_any_endpoint_the_picker_refuses(site: Site, decode: tuple[FakeWorker, ...]) -> None:
    for worker in decode:
        worker.ready = False
    wait_until(lambda: not site.picker.services.ready, "unreadiness")
    answer = site.envoy.post(CHAT, BODY)
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
    assert answer.headers["x-should-retry"] == "true"
    answer = site.envoy.request("GET", "/v1/models")
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")


def test_one_of_the_gateways_subset_is_picked(site: Site) -> None:
    for endpoint in site.beside:
        for method, path, body in (("POST", CHAT, json.dumps(BODY).encode()), ("GET", "/v1/models", b"")):
            answers = [site.envoy.request(method, path, body, subset=[endpoint, "10.0.0.1:1"]) for _ in range(3)]
            assert {answer.sent_headers[DESTINATION] for answer in answers} == {endpoint}


@pytest.mark.parametrize("subset", [[], ["10.0.0.1:1"]], ids=["empty", "foreign"])
def test_an_impossible_subset_is_refused(start_site: StartSite, subset: list[str]) -> None:
    site = start_site(worker_wait_s=0.1)
    assert site.envoy.post(CHAT, BODY, subset=subset).status == 503
    assert site.envoy.request("GET", "/v1/models", subset=subset).status == 503
    assert_nothing_is_left(site.picker)


def test_a_worker_that_comes_back_while_a_request_waits_is_still_not_of_its_subset(
    site: Site, decode: tuple[FakeWorker, ...]
) -> None:
    def turn(worker: FakeWorker, *, ready: bool) -> None:
        worker.ready = ready
        wait_until(lambda: site.picker.services.cluster.is_ready(worker.url) is ready, "its readiness")

    turn(decode[0], ready=False)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(site.envoy.post, CHAT, BODY, subset=[next(iter(site.beside))])
        wait_until(lambda: len(site.picker.services.lifelines) == 1, "the request's arrival")
        turn(decode[1], ready=False)
        turn(decode[1], ready=True)
        assert answer.result(10).status == 503
    assert requests_of(decode) == [0, 0]
    assert_nothing_is_left(site.picker)


def test_what_is_no_request_for_tokens_goes_to_any_endpoint(site: Site) -> None:
    answer = site.envoy.request("GET", "/v1/models")
    assert (answer.status, json.loads(answer.body)["data"][0]["id"]) == (200, "tiny")
    answer = site.envoy.post("/v1/nonsense", b"x" * 100_000)
    assert (answer.status, answer.error["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{no json", 400, None),
        (b"\xff\xfe", 400, None),
        ({"model": "other", "messages": []}, 404, "model_not_found"),
        (BODY | {"temprature": 1}, 400, "unknown_parameter"),
    ],
    ids=["no-json", "no-utf8", "model", "field"],
)
def test_wrong_requests_are_refused_before_any_worker_sees_them(
    site: Site, decode: tuple[FakeWorker, ...], body: Any, status: int, code: str | None
) -> None:
    answer = site.envoy.post(CHAT, body)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.error["type"] == "invalid_request_error"
    assert (answer.headers["x-should-retry"], answer.headers["content-type"]) == ("false", "application/json")
    assert requests_of(decode) == [0, 0]


def test_a_request_without_a_body_is_refused_at_once(site: Site) -> None:
    answer = site.envoy.post(CHAT, b"")
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert_nothing_is_left(site.picker)


@pytest.mark.parametrize("path", ["/v1/%63hat/completions", f"{CHAT}?a=b", f"{CHAT}#a"])
def test_however_its_path_is_written_a_request_is_placed_and_sets_none_of_our_headers(site: Site, path: str) -> None:
    lies = {"x-prefiller-host-port": "1.2.3.4:5", "x-penstock-source": "1.2.3.4:5", "x-penstock-priority": "-7"}
    answer = site.envoy.post(path, BODY, headers={"x-request-id": "mine", **lies})
    assert answer.status == 200
    assert site.picker.services.journal.find("mine") is not None
    assert {"1.2.3.4:5", "-7"}.isdisjoint(answer.sent_headers.values())
    other = site.envoy.post("/v1/nonsense", BODY, headers=lies)
    assert lies.keys().isdisjoint(other.sent_headers)


def test_a_body_may_come_in_one_message(site: Site) -> None:
    with site.envoy.call() as call:
        call.send(**first_message("POST", CHAT, {}, end=False))
        call.send(request_body={"body": json.dumps(BODY).encode() + b" " * 6_000_000, "end_of_stream": True})
        assert destination_of(call.next())


def test_a_body_over_the_limit_is_refused_before_its_end(start_site: StartSite) -> None:
    site = start_site(max_body_bytes=1000)
    with site.envoy.call() as call:
        call.send(**first_message("POST", CHAT, {}, end=False))
        call.send(request_body={"body": b" " * 600})
        call.send(request_body={"body": b" " * 600})
        refusal = call.next().immediate_response
    assert refusal.status.code == 413
    assert json.loads(refusal.body)["error"]["code"] == "request_too_large"
    assert_nothing_is_left(site.picker)
    assert site.picker.services.bodies.taken == 0


def test_a_worker_that_refuses_or_is_full_is_seen_by_the_client(site: Site, decode: tuple[FakeWorker, ...]) -> None:
    for worker in decode:
        worker.scripts.append(refuse("sampling.max_tokens"))
    answer = site.envoy.post(CHAT, BODY)
    assert (answer.status, answer.error["code"]) == (400, "odd")
    for worker in decode:
        worker.scripts.clear()
        worker.scripts.extend([busy] * 4)
    assert site.envoy.post(CHAT, BODY).status == 503
    assert_nothing_is_left(site.picker)


def test_keys_and_quotas_are_the_pickers(start_site: StartSite, tmp_path: Path) -> None:
    key, digest = new_key()
    file = tmp_path / "keys.toml"
    file.write_text(f'[team]\nkey_sha256 = ["{digest}"]\nrequests_per_minute = 1\ntokens_per_minute = 100000\n')
    unlimited = tmp_path / "unlimited.toml"
    unlimited.write_text(f'[team]\nkey_sha256 = ["{digest}"]\n')
    site = start_site(keys=str(file), sidecar={"keys": str(unlimited)})
    assert site.envoy.post(CHAT, BODY).status == 401
    headers = {"authorization": f"Bearer {key}"}
    answer = site.envoy.post(CHAT, BODY | {"max_tokens": 5}, headers=headers)
    assert answer.status == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    answer = site.envoy.post(CHAT, BODY, headers=headers)
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert 0 < int(answer.headers["retry-after"]) <= 60


def test_who_leaves_when_an_endpoint_has_the_request_is_charged_for_it(start_site: StartSite, tmp_path: Path) -> None:
    key, digest = new_key()
    file = tmp_path / "keys.toml"
    file.write_text(f'[team]\nkey_sha256 = ["{digest}"]\nrequests_per_minute = 5\n')
    site = start_site(keys=str(file))
    headers = {"authorization": f"Bearer {key}"}
    with site.envoy.call() as call:
        call.send(**first_message("POST", CHAT, headers, end=False))
        call.send(request_body={"body": json.dumps(BODY).encode(), "end_of_stream": True})
        assert destination_of(call.next())
    assert_nothing_is_left(site.picker)
    answer = site.envoy.post(CHAT, BODY, headers=headers)
    assert answer.headers["x-ratelimit-remaining-requests"] == "3"


def test_used_tokens_count_and_not_expected_ones(start_site: StartSite, tmp_path: Path) -> None:
    key, digest = new_key()
    file = tmp_path / "keys.toml"
    file.write_text(f'[team]\nkey_sha256 = ["{digest}"]\ntokens_per_minute = 1000\n')
    site = start_site(keys=str(file), sidecar={"keys": str(file)})
    body = BODY | {"stream": True, "max_tokens": 400}
    for _ in range(5):  # each is expected to take more than 256 tokens, and takes some 60
        answer = site.envoy.post(CHAT, body, headers={"x-api-key": key})
        assert answer.status == 200


@pytest.mark.parametrize("max_tokens", [1, 400])
def test_an_answer_in_one_piece_counts_as_its_usage_says(
    start_site: StartSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    key, digest = new_key()
    file = tmp_path / "keys.toml"
    file.write_text(f'[team]\nkey_sha256 = ["{digest}"]\ntokens_per_minute = 100000\n')
    site = start_site(keys=str(file), sidecar={"keys": str(file)})
    buckets, taken = site.picker.services.quotas._buckets, []
    take = buckets.take

    async def recorded(name: str, per_minute: int, amount: float, least: float = -math.inf) -> Level:
        taken.append(amount)
        return await take(name, per_minute, amount, least)

    monkeypatch.setattr(buckets, "take", recorded)
    answer = site.envoy.post(CHAT, BODY | {"max_tokens": max_tokens}, headers={"x-api-key": key})
    assert_nothing_is_left(site.picker)
    assert sum(taken) == json.loads(answer.body)["usage"]["total_tokens"]


def test_a_client_that_leaves_while_it_waits_leaves_nothing(
    start_site: StartSite, decode: tuple[FakeWorker, ...]
) -> None:
    site = start_site(worker_wait_s=30.0)
    for worker in decode:
        worker.ready = False
    wait_until(lambda: not site.picker.services.ready, "unreadiness")
    with site.envoy.call() as call:
        call.send(**first_message("POST", CHAT, {}, end=False))
        call.send(request_body={"body": json.dumps(BODY).encode(), "end_of_stream": True})
        wait_until(lambda: len(site.picker.services.lifelines) == 1, "the request's arrival")
    assert_nothing_is_left(site.picker)
    gone = site.picker.services.metrics.requests.labels("chat", "client_gone")
    wait_until(lambda: gone._value.get() == 1, "the count")


def test_a_gateway_that_ends_the_call_early_leaves_nothing(site: Site) -> None:
    for last in ("headers", "body", "answer"):
        with site.envoy.call() as call:
            call.send(**first_message("POST", CHAT, {}, end=False))
            if last != "headers":
                call.send(request_body={"body": json.dumps(BODY).encode(), "end_of_stream": True})
                assert destination_of(call.next()) in site.beside
            if last == "answer":
                call.next()
                call.send(response_headers={"headers": header_map({":status": "200"})})
                call.next()
                call.half_close()
        assert_nothing_is_left(site.picker)
    assert site.picker.services.bodies.taken == 0


@pytest.mark.parametrize("modes", [{"request_body_mode": 2}, {}], ids=["buffered", "none"])
def test_a_gateway_that_is_set_up_otherwise_is_told_how(site: Site, modes: dict[str, int]) -> None:
    with site.envoy.call() as call:
        call.send(**first_message("POST", CHAT, {}, end=False) | {"protocol_config": modes})
        with pytest.raises(grpc.RpcError) as caught:
            call.next()
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "FULL_DUPLEX_STREAMED" in caught.value.details()


def test_a_gateway_that_keeps_the_answer_to_itself_is_served(site: Site) -> None:
    """response_body_mode NONE: nothing comes after the answer's headers."""
    with site.envoy.call() as call:
        first = first_message("POST", CHAT, {}, end=False) | {"protocol_config": {"request_body_mode": 4}}
        call.send(**first)
        call.send(request_body={"body": json.dumps(BODY).encode(), "end_of_stream": True})
        assert destination_of(call.next()) in site.beside
        assert call.next().request_body.response.body_mutation.streamed_response.end_of_stream
        call.send(response_headers={"headers": header_map({":status": "200"})})
        assert call.next().HasField("response_headers")
        assert call.next() is None, "the picker has closed the call"
    assert_nothing_is_left(site.picker)


def test_trailers_end_an_answer_and_other_modes_need_no_body_back(site: Site) -> None:
    """response_body_mode STREAMED: the gateway keeps the pieces itself."""
    with site.envoy.call() as call:
        modes = {"protocol_config": {"request_body_mode": 4, "response_body_mode": 1}}
        call.send(**first_message("POST", CHAT, {}, end=False) | modes)
        call.send(request_body={"body": json.dumps(BODY).encode(), "end_of_stream": True})
        assert destination_of(call.next()) in site.beside
        call.next()
        call.send(response_headers={"headers": header_map({":status": "200"})})
        assert call.next().HasField("response_headers")
        call.send(response_body={"body": b"{}"})
        assert not call.next().response_body.response.HasField("body_mutation")
        call.send(response_trailers={})
        assert call.next().HasField("response_trailers")
        assert call.next() is None, "the picker has closed the call"
    assert_nothing_is_left(site.picker)


def test_a_picker_may_have_a_certificate(start_site: StartSite) -> None:
    site = start_site(ext_proc_tls=str(TLS))
    credentials = grpc.ssl_channel_credentials((TLS / "tls.crt").read_bytes())
    with Envoy(site.picker.services.config.ext_proc_port or 0, credentials) as envoy:
        assert envoy.post(CHAT, BODY).status == 200


def health_of(envoy: Envoy, service: str) -> int:
    check = envoy.channel.unary_unary(
        "/grpc.health.v1.Health/Check", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
    )
    status: int = check(HealthCheckRequest(service=service), timeout=5).status
    return status


def test_health_is_grpcs(site: Site, decode: tuple[FakeWorker, ...]) -> None:
    names = ("", "readiness", "liveness", "envoy.service.ext_proc.v3.ExternalProcessor")
    assert [health_of(site.envoy, name) for name in names] == [1, 1, 1, 1]
    for worker in decode:
        worker.ready = False
    wait_until(lambda: not site.picker.services.ready, "unreadiness")
    assert [health_of(site.envoy, name) for name in names] == [2, 2, 1, 2]
    with pytest.raises(grpc.RpcError) as caught:
        health_of(site.envoy, "other")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_configurations_that_cannot_work_are_refused(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="--ext-proc-port needs --endpoint-port"):
        RouterConfig(model=str(model_folder), ext_proc_port=1)
    with pytest.raises(ConfigError, match="--beside http://here:1 must be one of"):
        RouterConfig(model=str(model_folder), beside="http://here:1", decode="http://there:1")
    asked = {"model": str(model_folder), "endpoint_port": 1}
    with pytest.raises(ConfigError, match=r"--ext-proc-tls: .*tls\.key"):
        build_app(RouterConfig(**asked, ext_proc_port=free_port(), ext_proc_tls=str(model_folder)))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: .* in use"):
            build_app(RouterConfig(**asked, ext_proc_port=port))


GOLDEN = {
    "request_headers": b"\x12?\n=\n\x0f\n\x07:method\x1a\x04POST\n\x1d\n\x05:path\x1a\x14/v1/chat/completions"
    b"\n\x0b\n\x03old\x12\x04textBX\nV\n\x14envoy.lb.subset_hint\x12>\n<\n%x-gateway-destination-endpoint-subset"
    b"\x12\x132\x11\n\x0f\x1a\r10.0.0.1:8080Z\x04\x08\x04\x10\x04",
    "request_body": b'"\x06\n\x02ab\x10\x01',
    "response_body": b"*\x06\n\x02cd\x10\x01",
    "request_trailers": b"2\n\n\x08\n\x06\n\x01t\x1a\x011",
    "response_trailers": b":\x00",
    "response_headers": b"\x1a\x12\n\x10\n\x0e\n\x07:status\x1a\x03200",
}
"""As Envoy's own definitions write them (xds-protos 1.85.0)."""


@pytest.mark.parametrize("kind", GOLDEN)
def test_messages_are_the_bytes_of_envoys_own_definitions(kind: str) -> None:
    message = ProcessingRequest.FromString(GOLDEN[kind])
    assert kind_of(message) == kind
    assert message.SerializeToString(deterministic=True) == GOLDEN[kind], "every field is known, none is skipped"
