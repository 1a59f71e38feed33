"""What the executor makes of an API server's answers: what is refused for good, what will pass, what is merely news."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client as kubernetes_client

from penstock.operator.actions import Action, Apply, Create, WriteStatus
from penstock.operator.api import Status
from penstock.operator.client import Client
from penstock.operator.executor import Executor, Outcome, ParentGone
from penstock.operator.metrics import Metrics
from penstock.operator.render import Parent, render_revision, workers
from penstock.operator.store import Store
from tests.operator.world import NOW, World

PARENT = Parent("demo", "default", "1")
DEPLOYMENTS, SERVICES = "/apis/apps/v1/namespaces/default/deployments", "/api/v1/namespaces/default/services"
LLMD = "/apis/serving.penstock.dev/v1alpha1/namespaces/default/llmdeployments/demo"


class ApiServer:
    """Takes everything, except what `refusals` say: by the start of a path, a status and a message. `PATH#create` is of
    creations only."""

    def __init__(self, refusals: dict[str, tuple[int, str]], uid: str, there: dict[str, Any] | None) -> None:
        self.refusals, self.uid, self.there = refusals, uid, there
        self.applied: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        text = await request.text()
        for path, (status, message) in self.refusals.items():
            path, _, only = path.partition("#")
            if only and '"resourceVersion"' not in text:
                continue
            if request.path.startswith(path) and request.method != "GET":
                return web.json_response({"kind": "Status", "message": message, "code": status}, status=status)
        if request.method == "GET" and request.path != LLMD and self.there:
            return web.json_response(self.there)
        if request.method == "GET" and request.path != LLMD:
            return web.json_response({"message": "not found"}, status=404)
        if request.method == "GET":
            return web.json_response({"metadata": {"name": "demo", "uid": self.uid}})
        body: dict[str, Any] = json.loads(text)
        is_creation = body["kind"] != "LLMDeployment" and "uid" not in body["metadata"]
        assert not is_creation or body["metadata"]["resourceVersion"] == "1", "it would be taken over"
        self.applied.append(body["kind"])
        return web.json_response(body | {"metadata": body["metadata"] | {"uid": "u", "resourceVersion": "1"}})


def execute(
    actions: Sequence[Action],
    refusals: dict[str, tuple[int, str]],
    *,
    uid: str = "1",
    there: dict[str, Any] | None = None,
) -> tuple[Outcome, list[str]]:
    """What came of it, and the kinds of what was applied."""

    async def run() -> tuple[Outcome, list[str]]:
        server = ApiServer(refusals, uid, there)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.answer)
        async with TestServer(app) as local:
            configuration = kubernetes_client.Configuration()
            configuration.host = str(local.make_url("")).rstrip("/")
            async with kubernetes_client.ApiClient(configuration) as api:
                client = Client(api, Metrics())
                executor = Executor(client, Store(lambda _: None), Metrics())
                return await executor.run(PARENT, actions, NOW), server.applied

    return asyncio.run(run())


def prefill() -> tuple[Create, Create]:
    """Service and Deployment of a revision's prefill workers."""
    world = World()
    service, deployment = workers(PARENT, "prefill", render_revision("demo", world.spec, world.config), 1)
    return Create(service), Create(deployment)


UNKNOWN_FIELD = (
    "failed to create typed patch object (default/demo-prefill; apps/v1, Kind=Deployment):"
    ' .spec.template.spec.containers[name="worker"].imagee: field not declared in schema'
)
NO_QUANTITY = (
    "failed to convert new object (default/demo-prefill; apps/v1, Kind=Deployment) to proper version: unable to convert"
    " unstructured object to apps/v1, Kind=Deployment: quantities must match the regular expression"
)
INVALID = 'Deployment.apps "demo-prefill" is invalid: spec.template.spec.restartPolicy: Unsupported value: "Sometimes"'


@pytest.mark.parametrize(
    ("status", "message", "sentence"),
    [
        (500, UNKNOWN_FIELD, 'template.spec.containers[name="worker"].imagee: field not declared in schema'),
        (400, UNKNOWN_FIELD, 'template.spec.containers[name="worker"].imagee: field not declared in schema'),
        (422, INVALID, 'template.spec.restartPolicy: Unsupported value: "Sometimes"'),
        (500, NO_QUANTITY, "quantities must match the regular expression"),
    ],
)
def test_a_pod_template_that_is_refused_is_named_as_the_user_wrote_it(status: int, message: str, sentence: str) -> None:
    """Unknown fields come with status 500, as if asking again would help."""
    outcome, applied = execute(prefill(), {DEPLOYMENTS: (status, message)})
    assert outcome == Outcome((f"the API server refuses the pods of spec.prefill: {sentence}",), None)
    assert applied == ["Service"]


def test_a_refusal_does_not_keep_the_rest_from_being_done() -> None:
    actions = [*prefill(), WriteStatus(Status())]
    outcome, applied = execute(actions, {SERVICES: (403, "services is forbidden")})
    (refusal,) = outcome.refusals
    assert "services is forbidden" in refusal
    assert applied == ["Deployment", "LLMDeployment"]


@pytest.mark.parametrize("status", [429, 500, 503, 401])
def test_what_will_pass_is_no_refusal_and_the_rest_is_done_meanwhile(status: int) -> None:
    outcome, applied = execute([*prefill(), WriteStatus(Status())], {SERVICES: (status, "later")})
    assert outcome.refusals == ()
    assert outcome.failure is not None
    assert (outcome.failure.status, applied) == (status, ["Deployment", "LLMDeployment"])


def test_nothing_is_created_for_another_deployment_of_the_same_name() -> None:
    with pytest.raises(ParentGone):
        execute(prefill(), {}, uid="2")


@pytest.mark.parametrize("labels", [{}, {"app.kubernetes.io/managed-by": "penstock"}])
def test_what_is_there_already_is_never_taken_over(labels: dict[str, str]) -> None:
    """A version that no object has lets an apply create only; what is ours the next plan applies over."""
    service, _ = prefill()
    metadata = {"name": "x", "namespace": "default", "uid": "u", "resourceVersion": "7", "labels": labels}
    there = {"kind": "Service", "metadata": metadata}
    outcome, applied = execute([service], {SERVICES: (409, "the object has been modified")}, there=there)
    assert applied == []
    name = service.manifest["metadata"]["name"]
    said = f"Service {name} exists and is not Penstock's: delete it, or give the LLMDeployment another name"
    assert outcome == Outcome(() if labels else (said,), None)


def test_what_is_ours_by_its_owner_gets_its_labels_back() -> None:
    """Without them nobody watches it, so a plan takes it for missing."""
    service, _ = prefill()
    metadata = {"name": "x", "namespace": "default", "uid": "u7", "resourceVersion": "7", "labels": {"my": "label"}}
    there = {"kind": "Service", "metadata": metadata | {"ownerReferences": [PARENT.owner()]}}
    outcome, applied = execute([service], {f"{SERVICES}#create": (409, "modified")}, there=there)
    assert (outcome, applied) == (Outcome((), None), ["Service"])


@pytest.mark.parametrize("status", [404, 409])
def test_an_object_that_is_another_one_by_now_is_looked_at_again(status: int) -> None:
    _, create = prefill()
    outcome, _ = execute([Apply(create.manifest, "old")], {DEPLOYMENTS: (status, "gone, or its uid differs")})
    assert outcome == Outcome((), None)
