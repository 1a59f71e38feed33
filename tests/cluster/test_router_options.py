"""API keys from a Secret that changes under running routers, and two routers that meet in the chart's own Redis.

One deployment is shared by all tests of this file.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.cluster.conftest import new_namespace
from tests.cluster.kube import CLIENT_IMAGE, CommandFailed, Kube, Object, eventually
from tests.cluster.test_helm import upgrade
from tests.cluster.traffic import Traffic

pytestmark = pytest.mark.slow  # kubelets take their time for Secrets
NAME = "shared"
MODEL = "penstock-demo"
KEYS = "team-keys"
REDIS = "app.kubernetes.io/name=penstock-redis"
CLIENT = "client"
PER_MINUTE = 12
SECRET_S = 150.0
"""A kubelet looks at Secrets every minute or so; the shared cluster's, every 10 s."""
ALWAYS, LIMITED, FIRST, SECOND = "sk-always", "sk-limited", "sk-first", "sk-second"

_ASK = """
import json, sys, urllib.error, urllib.request
model, requests = sys.argv[1:]
body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "What is the KV cache?"}]}
for url, key in json.loads(requests):
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    print(json.dumps([answer.status, json.loads(answer.read()), answer.headers.get("retry-after")]))
"""


class Answer(NamedTuple):
    """Of a router."""

    status: int
    body: Object
    retry_after: str | None


def ask(kube: Kube, *requests: tuple[str, str]) -> list[Answer]:
    """One after the other: (URL, key), without a key when that is ""."""
    lines = kube.run("exec", CLIENT, "--", "python", "-c", _ASK, MODEL, json.dumps(requests))
    return [Answer(*json.loads(line)) for line in lines.splitlines()]


def keys(team: str) -> str:
    """The Secret; `team` is the key of one of its tenants."""
    tenants = {"always": ALWAYS, "team": team, "limited": LIMITED}
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in tenants.items()}
    file = "".join(f'[{name}]\nkey_sha256 = ["{digest}"]\n' for name, digest in digests.items())
    file += f"requests_per_minute = {PER_MINUTE}\n"  # of the last one
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS}}
    return json.dumps(body | {"data": {"keys.toml": base64.b64encode(file.encode()).decode()}})


def deployment() -> str:
    pool = {"gpus": 0, "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}}
    router = {"replicas": 2, "keysSecret": {"name": KEYS}, "redisSecret": {"name": "penstock-redis"}}
    spec = {"model": {"uri": f"file:///models/{MODEL}"}, "prefill": pool, "decode": pool, "router": router}
    body = {"apiVersion": "serving.penstock.dev/v1alpha1", "kind": "LLMDeployment", "metadata": {"name": NAME}}
    return json.dumps(body | {"spec": spec})


def client() -> str:
    command = ["python", "-c", "import time; time.sleep(3600)"]
    container = {"name": CLIENT, "image": CLIENT_IMAGE, "imagePullPolicy": "IfNotPresent", "command": command}
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": CLIENT}, "spec": spec})


@pytest.fixture(scope="module")
def shared(penstock: Kube) -> Iterator[Kube]:  # noqa: ARG001 - it must be there
    """The namespace; the release brings a Redis as long as it is there."""
    with new_namespace() as kube:
        redis = ("redis.enabled=true", f"redis.image={CLIENT_IMAGE}", f"redis.namespaces={{{kube.namespace}}}")
        try:
            upgrade(*(option for value in redis for option in ("--set", value)))
            kube.apply(keys(FIRST))
            kube.apply(deployment())
            kube.apply(client())
            kube.wait_ready(NAME)
            kube.run("wait", "--for=condition=Ready", f"pod/{CLIENT}", "--timeout=60s")
            yield kube
        except CommandFailed as error:
            pytest.fail(f"{error}\n{kube.describe()}")
        finally:
            upgrade()


def routers(kube: Kube) -> list[Object]:
    """Both pods."""
    selector = f"serving.penstock.dev/deployment={NAME},serving.penstock.dev/role=router"
    found = [pod for pod in kube.items("pods", selector) if "deletionTimestamp" not in pod["metadata"]]
    assert len(found) == 2
    return found


def urls(kube: Kube) -> list[str]:
    """Each router by itself."""
    return [f"http://{pod['status']['podIP']}:8000" for pod in routers(kube)]


def lives(kube: Kube) -> dict[str, int]:
    """Restarts by the uid of the pod."""
    return {pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in routers(kube)}


def metric(kube: Kube, name: str) -> list[float]:
    """Of each router."""
    return [kube.metrics(pod["metadata"]["name"], 8000)[name] for pod in routers(kube)]


def meet(kube: Kube) -> None:
    eventually(lambda: metric(kube, "penstock_router_redis_ready") == [1, 1], "both routers are in touch with Redis")


def test_who_has_no_key_of_the_secret_is_refused(shared: Kube) -> None:
    url = f"http://{NAME}.{shared.namespace}.svc"
    without, unknown, known = ask(shared, (url, ""), (url, "sk-unknown"), (url, FIRST))
    for refused in (without, unknown):
        assert (refused.status, refused.body["error"]["code"]) == (401, "invalid_api_key")
    assert known.status == 200
    assert known.body["choices"][0]["message"]["content"]


def test_a_changed_secret_takes_effect_without_a_restart(shared: Kube) -> None:
    def statuses(key: str) -> set[int]:
        return {answer.status for answer in ask(shared, *((url, key) for url in urls(shared)))}

    before = lives(shared)
    assert statuses(SECOND) == {401}
    shared.apply(keys(SECOND))
    took = eventually(lambda: statuses(SECOND) == {200}, "both routers take the new key", within_s=SECRET_S)
    print(f"both routers take the new key {took:.1f} s after the Secret has changed")
    assert statuses(FIRST) == {401}
    assert lives(shared) == before


def test_a_quota_holds_over_both_routers(shared: Kube) -> None:
    meet(shared)
    answers = ask(shared, *(PER_MINUTE * [(url, LIMITED) for url in urls(shared)]))
    granted = [answer.status for answer in answers].count(200)
    print(f"{granted} of {len(answers)} requests were granted")
    assert PER_MINUTE <= granted <= 1.5 * PER_MINUTE, "it refills meanwhile; each alone would have granted all"
    for refused in (answer for answer in answers if answer.status != 200):
        assert (refused.status, refused.body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.retry_after is not None


def test_the_loss_of_redis_fails_no_request(shared: Kube, penstock: Kube) -> None:
    before = metric(shared, "penstock_router_redis_errors_total")
    traffic = Traffic(shared, NAME, MODEL, key=ALWAYS)

    def have_noticed() -> bool:
        now = metric(shared, "penstock_router_redis_errors_total")
        return all(errors > then for errors, then in zip(now, before, strict=True))

    with traffic.unbroken():
        penstock.run("delete", "pod", "--selector", REDIS)
        eventually(have_noticed, "both routers have noticed")
        meet(shared)


def test_the_operator_hears_from_the_routers_whether_their_predictions_hold(shared: Kube) -> None:
    """Whether they do on a machine that is busy with tests is another matter."""
    eventually(lambda: shared.condition(NAME, "PredictionsDrift").get("status") in ("True", "False"), "it is told")
    print(shared.condition(NAME, "PredictionsDrift")["message"])
