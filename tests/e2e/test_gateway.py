"""Real workers behind somebody else's gateway: our picker, or none at all, and a router beside each decode worker."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from penstock.listen import free_port
from penstock.router.config import RouterConfig
from tests.e2e.client import MODEL, Answer, completion, completion_body, new_client, random_prompt
from tests.e2e.deployment import ROUTER, Deployment, Worker, metrics_of
from tests.e2e.processes import Running, Surroundings, eventually, start_router
from tests.router.gateway.envoy import DESTINATION, Envoy

HOSTS = {"decode-0": "127.0.0.2", "decode-1": "127.0.0.3"}
PROMPT = random_prompt(85, seed=1)


class Site:
    """A deployment and what makes it endpoints of a gateway."""

    def __init__(self, deployment: Deployment, endpoints: dict[str, Worker], envoy: Envoy) -> None:
        self.deployment = deployment
        self.endpoints = endpoints
        self.envoy = envoy

    def post(self, prompt: list[int], **options: Any) -> Any:
        """Through the gateway, as JSON."""
        return self.envoy.post("/v1/completions", body_of(prompt, options))


def body_of(prompt: list[int], options: dict[str, Any]) -> dict[str, Any]:
    body = completion_body(prompt, options)
    extra: dict[str, Any] = body.pop("extra_body")
    return body | extra


def run_site(model: Path, logs: Path, stack: ExitStack) -> Site:
    ext_proc_port, endpoint_port = free_port(), free_port()
    picker = {"ext_proc_port": ext_proc_port, "endpoint_port": endpoint_port}
    deployment = Deployment(
        model, logs, decode=2, router=picker, place=lambda name: {"host": HOSTS.get(name, "127.0.0.1")}
    )
    stack.callback(deployment.close)
    lists = {
        "decode": ",".join(worker.url for worker in deployment.decode),
        "prefill": ",".join(worker.url for worker in deployment.prefill),
    }
    endpoints, beside = {}, list[Running]()
    for worker in deployment.decode:
        config = RouterConfig(
            model=str(model), host=worker.config.host, port=endpoint_port, beside=worker.url, **lists, **ROUTER
        )
        running = start_router(config, Surroundings(logs / f"beside-{worker.name}.log", {}))
        stack.callback(running.kill)
        beside.append(running)
        endpoints[f"{worker.config.host}:{endpoint_port}"] = worker
    for running in beside:
        running.wait_ready()
    stack.enter_context(deployment)
    return Site(deployment, endpoints, stack.enter_context(Envoy(ext_proc_port)))


@pytest.fixture(scope="module")
def module_site(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield run_site(model, tmp_path_factory.mktemp("logs"), stack)


@pytest.fixture
def site(module_site: Site) -> Iterator[Site]:
    """Whatever the test did, nothing is left afterwards."""
    yield module_site
    module_site.deployment.assert_quiet()


def test_the_picked_workers_answer_bit_for_bit(site: Site) -> None:
    answer = site.post(PROMPT, salt="picked")
    [prefill] = site.deployment.prefill
    decode = site.endpoints[answer.sent_headers[DESTINATION]]
    assert (answer.headers["x-penstock-prefill"], answer.headers["x-penstock-decode"]) == (prefill.url, decode.url)
    assert decode.metric("penstock_pulled_blocks_total") >= 11, "the prompt's KV has moved"
    with new_client(site.deployment.url) as client:
        expected = completion(client, PROMPT, salt="router").answer
    expected.assert_varied()
    [choice] = json.loads(answer.body)["choices"]
    assert choice["text"] == expected.text
    assert choice["logprobs"]["token_logprobs"] == [logprob for _, logprob in expected.tokens]


def test_streams_at_the_same_time_are_all_whole(site: Site) -> None:
    prompts = [random_prompt(40 + 3 * number, seed=number) for number in range(24)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda prompt: site.post(prompt, stream=True, max_tokens=16), prompts))
    with new_client(site.deployment.url) as client:
        for prompt, answer in zip(prompts, answers, strict=True):
            events = [event for event in answer.body.split(b"\n\n") if event.startswith(b"data: {")]
            choices = [choice for event in events for choice in json.loads(event[6:])["choices"]]
            assert (
                "".join(choice["text"] for choice in choices) == completion(client, prompt, max_tokens=16).answer.text
            )
            assert answer.body.endswith(b"data: [DONE]\n\n")
    assert {answer.sent_headers[DESTINATION] for answer in answers} == set(site.endpoints)


def test_the_next_turn_goes_where_the_first_one_is_cached(site: Site) -> None:
    first = site.post(PROMPT, salt="turns")
    turn = PROMPT + random_prompt(60, seed=2)
    second = site.post(turn, salt="turns")
    assert first.sent_headers[DESTINATION] == second.sent_headers[DESTINATION]
    assert json.loads(second.body)["usage"]["prompt_tokens_details"]["cached_tokens"] == 80


def test_behind_a_picker_that_knows_no_prefill_workers_both_roles_work(site: Site) -> None:
    """The client's own header names nobody: it would have a worker call any address."""
    [prefill] = site.deployment.prefill
    for endpoint, decode in site.endpoints.items():
        with new_client(f"http://{endpoint}") as client:
            headers = {"x-prefiller-host-port": "10.0.0.1:8100", "x-penstock-source": "10.0.0.1:8100"}
            reply = completion(client, PROMPT, salt=f"at {endpoint}", extra_headers=headers)
        assert (reply.prefill, reply.decode) == (prefill.url, decode.url)


def test_pickers_find_vllms_metrics_at_the_endpoint(site: Site) -> None:
    """The names that the Inference Extension's own picker scrapes, and the worker's values."""
    for endpoint, decode in site.endpoints.items():
        with new_client(f"http://{endpoint}") as client:
            completion(client, PROMPT, salt=f"metrics {endpoint}")
        found = metrics_of(f"http://{endpoint}")
        own = metrics_of(decode.url)
        for name in ("vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:cache_config_info"):
            assert found[name] == own[name]
        assert found["vllm:request_success_total"] == own["vllm:request_success_total"] > 0
        assert found["penstock_router_requests_total"] > 0


def test_a_stream_at_an_endpoint_outlives_its_worker(model: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        site = run_site(model, tmp_path, stack)
        [(endpoint, decode), _] = site.endpoints.items()
        with new_client(site.deployment.url) as client:
            expected = completion(client, PROMPT, max_tokens=300).answer.text
        answer = Answer()
        with new_client(f"http://{endpoint}") as client:
            body = completion_body(PROMPT, {"max_tokens": 300, "stream": True})
            for number, part in enumerate(client.completions.create(**body)):
                if number == 20:
                    decode.process.kill()
                answer.text += "".join(choice.text for choice in part.choices)
        assert answer.text == expected
        eventually(lambda: not is_ready(f"http://{endpoint}"), "unreadiness of the endpoint")
        with pytest.raises(urllib.error.HTTPError, match="503"):
            metrics_of(f"http://{endpoint}")
        answers = [site.post(random_prompt(30, seed=number), max_tokens=4) for number in range(8)]
        assert {answer.status for answer in answers} == {200}
        assert endpoint not in {answer.sent_headers[DESTINATION] for answer in answers}


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False


def test_the_model_is_that_of_the_deployment(site: Site) -> None:
    listed = json.loads(site.envoy.request("GET", "/v1/models").body)
    assert [model["id"] for model in listed["data"]] == [MODEL]
