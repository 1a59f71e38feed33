"""One deployment under traffic that never stops: rollouts, specs that cannot work, scaling, evictions, dead operators.

The deployment and its client are shared by all tests of this file; each leaves the deployment whole.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from penstock.cli import main
from tests.cluster.conftest import new_namespace
from tests.cluster.kube import CommandFailed, Kube, Object, eventually, run
from tests.cluster.network import API_SERVER, all_but_http_of, cut
from tests.cluster.policies import Peer, admits
from tests.cluster.rights import NOT_COUNTED, granted, used
from tests.cluster.test_end_to_end import addresses, known_workers
from tests.cluster.traffic import Traffic

CONTROL_IMAGE = "penstock/control:test"
NAME = "busy"
ROLES = ("prefill", "decode", "router")
LEASE = "penstock-operator"
SAYS_WHY_S = 15.0
FAILOVER_S = 12.0
OUTAGE_S = 60.0
REPAIR_S = 5.0


def manifest(**changes: Any) -> str:
    """The deployment; `changes` are merged into its spec, one level deep."""
    requests = {"requests": {"cpu": "100m", "memory": "256Mi"}}
    spec: dict[str, Any] = {
        "model": {"uri": "file:///models/penstock-demo", "servedName": NAME},
        "prefill": {"gpus": 0, "resources": requests},
        "decode": {"gpus": 0, "replicas": 2, "resources": requests},
        "router": {"flags": {"policy": "least-work"}},  # prompts are handed over, also while decode workers are idle
    }
    for field, change in changes.items():
        spec[field] = spec.get(field, {}) | change
    body = {"apiVersion": "serving.penstock.dev/v1alpha1", "kind": "LLMDeployment", "metadata": {"name": NAME}}
    return json.dumps(body | {"spec": spec})


@dataclass(frozen=True)
class Busy:
    """The deployment, its namespace and its client."""

    kube: Kube
    traffic: Traffic

    def apply(self, **changes: Any) -> None:
        self.kube.apply(manifest(**changes))

    def status(self) -> Object:
        found: Object = self.kube.get("llmd", NAME)["status"]
        return found

    def condition(self, kind: str) -> Object:
        """A condition, once it is about the last spec; until then {}."""
        generation = self.kube.get("llmd", NAME)["metadata"]["generation"]
        found = self.kube.condition(NAME, kind)
        return found if found.get("observedGeneration") == generation else {}

    def wait_complete(self, within_s: float = 150.0) -> float:
        """Seconds until the last spec serves alone and whole."""

        def is_complete() -> bool:
            status = self.status()
            counts = [status[role] for role in ("prefill", "decode", "router")]
            is_whole = all(count["ready"] == count["replicas"] for count in counts)
            return self.condition("Progressing").get("reason") == "Complete" and is_whole

        try:
            return eventually(is_complete, "the last spec serves", within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.kube.describe()}") from None


@pytest.fixture(scope="module")
def busy(penstock: Kube) -> Iterator[Busy]:  # noqa: ARG001 - it must be there
    with new_namespace() as kube:
        kube.apply(manifest())
        kube.wait_ready(NAME)
        yield Busy(kube, Traffic(kube, NAME, NAME))


def test_transfers_are_verified_and_the_commands_say_how_it_is(
    busy: Busy, penstock: Kube, capsys: pytest.CaptureFixture[str]
) -> None:
    busy.kube.run("wait", "--for=condition=KVTransferVerified", f"llmd/{NAME}", "--timeout=20s")
    assert busy.kube.condition(NAME, "KVTransferVerified")["reason"] == "BlocksMoved"
    assert main(["status", NAME, "--namespace", busy.kube.namespace]) == 0
    said = capsys.readouterr().out
    print(said)
    for part in (f"{busy.kube.namespace}/{NAME}: ready", "2/2  2 x ", "KVTransferVerified   True", "running\n"):
        assert part in said
    moved = re.search(r"transfers (\d+) blocks, \d+ MB/s, 0 failed", said)
    assert moved
    assert int(moved[1]) > 0
    assert main(["doctor", "--operator-namespace", penstock.namespace]) == 0
    said = capsys.readouterr().out
    print(said)
    for part in ("ok    cluster      Kubernetes", "ok    operator     penstock-operator-", " leads\n", "1 of 1 ready"):
        assert part in said


@pytest.mark.slow
def test_transfers_that_stop_working_are_said_and_so_is_their_return(busy: Busy) -> None:
    """Every pod stays ready and every call is answered; only blocks no longer cross. Answers go on without them."""
    (prefill,), others = workers(busy.kube, "prefill"), workers(busy.kube, "decode")
    with busy.traffic.unbroken():
        with cut(busy.kube, prefill["metadata"]["name"], all_but_http_of(others, 8100)):
            took = eventually(lambda: busy.condition("KVTransferVerified")["status"] == "False", "it is said")
            print(f"said {took:.1f} s after the cut: {busy.condition('KVTransferVerified')['message']}")
            for kind in ("KVTransferVerified", "Degraded"):
                assert busy.condition(kind)["reason"] == "TransfersFail"
                assert busy.condition(kind)["message"].startswith("KV blocks do not move from http://")
            assert busy.condition("Ready")["status"] == "True"
            assert len(ready_names(busy.kube, "prefill")) == 1
        took = eventually(lambda: busy.condition("KVTransferVerified")["status"] == "True", "they move again")
        print(f"verified {took:.1f} s after the cut was mended")
    assert busy.condition("Degraded")["status"] == "False"


BROKEN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "image": (
        "ImagePullFailed",
        "image localhost:1/nowhere:test cannot be pulled",
        {"prefill": {"template": {"spec": {"containers": [{"name": "worker", "image": "localhost:1/nowhere:test"}]}}}},
    ),
    "node": ("Unschedulable", "no node fits: ", {"decode": {"nodeSelector": {"penstock-test": "nowhere"}}}),
    "model": ("ModelNotFound", "/models/nowhere", {"model": {"uri": "file:///models/nowhere"}}),
    "flag": ("CrashLoop", "no-such-flag", {"engine": {"no-such-flag": "1"}}),
    "memory": (
        "OutOfMemory",
        "was killed for using more memory than its limit",
        {"prefill": {"resources": {"limits": {"memory": "96Mi"}}}},
    ),
    "volume": (
        "PodCannotStart",
        'secret "nowhere" not found',
        {
            "decode": {
                "template": {
                    "spec": {
                        "volumes": [{"name": "more", "secret": {"secretName": "nowhere"}}],
                        "containers": [{"name": "worker", "volumeMounts": [{"name": "more", "mountPath": "/more"}]}],
                    }
                }
            }
        },
    ),
    "template": (
        "Refused",
        'spec.prefill: template.spec.containers[name="worker"].imagee: field not declared in schema',
        {"prefill": {"template": {"spec": {"containers": [{"name": "worker", "imagee": "mistyped:1"}]}}}},
    ),
}


OFTEN = ("image", "model", "template")
"""The others take their time."""


@pytest.mark.parametrize(
    "broken", [*OFTEN, *(pytest.param(each, marks=pytest.mark.slow) for each in BROKEN if each not in OFTEN)]
)
def test_a_spec_that_cannot_work_says_why_and_the_running_revision_serves_on(busy: Busy, broken: str) -> None:
    reason, message, change = BROKEN[broken]
    serving = busy.status()["revision"]
    with busy.traffic.unbroken():
        busy.apply(**change)
        took = eventually(
            lambda: busy.condition("Progressing").get("reason") == reason,
            f"Progressing says {reason}",
            within_s=SAYS_WHY_S,
        )
        print(f"{reason} after {took:.1f} s: {busy.condition('Progressing')['message']}")
        progressing, degraded = busy.condition("Progressing"), busy.condition("Degraded")
        assert progressing["status"] == "False"
        assert message in progressing["message"]
        assert f"revision {serving} goes on serving" in progressing["message"]
        assert (degraded["status"], degraded["reason"]) == ("True", reason)
        assert busy.condition("Ready")["status"] == "True"
        assert busy.status()["revision"] == serving
        busy.apply()
        busy.wait_complete()
    assert busy.status()["revision"] == serving


@pytest.mark.slow
def test_workers_that_run_and_never_become_ready_are_told_of(busy: Busy) -> None:
    probe = {"name": "worker", "readinessProbe": {"httpGet": {"path": "/nowhere"}}}
    with busy.traffic.unbroken():
        busy.apply(decode={"template": {"spec": {"containers": [probe]}}})
        said = "Readiness probe failed: HTTP probe failed with statuscode: 404"
        took = eventually(lambda: said in busy.condition("Degraded").get("message", ""), "the node's words are told")
        print(f"told after {took:.1f} s: {busy.condition('Degraded')['message']}")
        assert busy.condition("Degraded")["reason"] == "NotReady"
        assert busy.condition("Progressing")["status"] == busy.condition("Ready")["status"] == "True"
        busy.apply()
        busy.wait_complete()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"engine": {"max-sequences": "32"}}, id="flags", marks=pytest.mark.slow),
        pytest.param({"model": {"uri": "image://penstock/test-model:test"}}, id="model"),
    ],
)
def test_a_rollout_fails_no_request(busy: Busy, change: dict[str, Any]) -> None:
    old = busy.status()["revision"]
    with busy.traffic.unbroken():
        busy.apply(**change)
        print(f"rolled out in {busy.wait_complete():.1f} s")
    assert busy.status()["revision"] != old
    assert len(busy.kube.items("controllerrevisions", f"serving.penstock.dev/deployment={NAME}")) == 1


def test_scaling_through_the_pool_fails_no_request_and_leaves_the_deployment_alone(busy: Busy) -> None:
    before = busy.kube.get("llmd", NAME)["metadata"]["generation"]
    with busy.traffic.unbroken():
        for replicas in (3, 1):
            busy.kube.run("scale", f"llmpool/{NAME}-decode", f"--replicas={replicas}")
            wait_replicas(busy, replicas)
    assert busy.kube.get("llmd", NAME)["metadata"]["generation"] == before


def test_replicas_changed_in_the_deployment_take_effect_once(busy: Busy) -> None:
    spec = busy.kube.get("llmd", NAME)["spec"]
    with busy.traffic.unbroken():
        busy.apply(engine=spec["engine"], model=spec["model"], decode={"replicas": 3})
        wait_replicas(busy, 3)


def wait_replicas(busy: Busy, replicas: int) -> None:
    summary = f"{replicas}/{replicas}"
    eventually(lambda: busy.status()["decode"]["summary"] == summary, f"{replicas} workers")
    assert busy.kube.get("llmpool", f"{NAME}-decode")["status"]["readyReplicas"] == replicas


def test_an_evicted_worker_fails_no_request_and_the_next_eviction_waits(busy: Busy) -> None:
    first, second, *_ = (pod["metadata"]["name"] for pod in workers(busy.kube, "decode"))
    with busy.traffic.unbroken():
        evict(busy.kube, first)
        with pytest.raises(CommandFailed, match="disruption budget"):
            evict(busy.kube, second)
        eventually(lambda: ready_names(busy.kube, "decode") - {first, second}, "another worker takes its place")
        busy.wait_complete()


def evict(kube: Kube, pod: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": kube.namespace}}
    path = f"/api/v1/namespaces/{kube.namespace}/pods/{pod}/eviction"
    kube.run("create", "--raw", path, "--filename", "-", text=json.dumps(body))


def workers(kube: Kube, role: str) -> list[Object]:
    """Pods of a role that are not being deleted."""
    pods = kube.items("pods", f"serving.penstock.dev/deployment={NAME},serving.penstock.dev/role={role}")
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def ready_names(kube: Kube, role: str) -> set[str]:
    def is_ready(pod: Object) -> bool:
        return any(found["type"] == "Ready" and found["status"] == "True" for found in pod["status"]["conditions"])

    return {pod["metadata"]["name"] for pod in workers(kube, role) if is_ready(pod)}


def test_the_role_is_what_the_life_of_a_deployment_needs(busy: Busy, penstock: Kube) -> None:
    """All that came before in this file belongs to that life; here objects are deleted under it."""
    selector = f"serving.penstock.dev/deployment={NAME}"
    with busy.traffic.unbroken():
        for kind in ("configmap", "role", "rolebinding", "serviceaccount", "pdb", "networkpolicy"):
            busy.kube.run("delete", kind, "--selector", selector, "--wait=false")
        eventually(lambda: busy.kube.items("networkpolicies", selector), "what was deleted is back")
    calls = used(penstock)
    assert {right for right, statuses in calls.items() if "403" in statuses} == set()
    assert set(calls) <= granted(), "a right that the cluster gave but the chart does not"
    assert granted() - set(calls) - set(NOT_COUNTED) == set(), "rights that nothing needed"


def test_a_standby_acts_within_twelve_seconds_of_the_leaders_death(busy: Busy, penstock: Kube) -> None:
    budget = ("poddisruptionbudget", f"{NAME}-decode")
    with busy.traffic.unbroken(), killer(penstock) as kill:
        for how in ("kill -9", "delete --force"):
            eventually(lambda: len(operators(penstock)) == 2, "two operators are ready")
            leader = leader_of(penstock)
            if how == "kill -9":
                kill(leader)
            else:
                penstock.run("delete", "pod", leader, "--force", "--grace-period=0")
            busy.kube.run("delete", *budget)
            took = eventually(lambda: budget_exists(busy.kube), "the other one acts", within_s=FAILOVER_S)
            print(f"{how} of the leader: repaired {took:.1f} s later")


def budget_exists(kube: Kube) -> bool:
    return any(found["metadata"]["name"] == f"{NAME}-decode" for found in kube.items("poddisruptionbudgets"))


def operators(system: Kube) -> list[str]:
    """Names of the operator's pods that are ready."""
    pods = system.items("pods", "app.kubernetes.io/name=penstock-operator")
    return [
        pod["metadata"]["name"]
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
        and all(container["ready"] for container in pod["status"].get("containerStatuses", [{"ready": False}]))
    ]


def leader_of(system: Kube) -> str:
    """The pod that leads."""
    holder: str = system.get("lease", LEASE)["spec"]["holderIdentity"]
    return holder.split("_")[0]


@contextmanager
def killer(system: Kube) -> Iterator[Callable[[str], None]]:
    """Sends SIGKILL to an operator, of which kubectl knows no way: from a pod that sees the node's processes, as the
    same user. The operator is found by the name of its container, which is also that of its cgroup.
    """
    node = json.loads(run("kubectl", "get", "nodes", "--output", "json"))["items"][0]["metadata"]["name"]
    code = """
import os, pathlib, signal, sys
found = [file.parent.name for file in pathlib.Path("/proc").glob("[0-9]*/cgroup") if sys.argv[1] in file.read_text()]
for pid in found:
    os.kill(int(pid), signal.SIGKILL)
sys.exit(None if found else "no such process on this node")
"""
    container = {
        "name": "killer",
        "image": CONTROL_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "600"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {"hostPID": True, "nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "killer"}, "spec": spec}
    system.apply(json.dumps(pod))
    system.run("wait", "--for=condition=Ready", "pod/killer", "--timeout=60s")

    def kill(operator: str) -> None:
        (container,) = system.get("pod", operator)["status"]["containerStatuses"]
        system.run("exec", "killer", "--", "python", "-c", code, container["containerID"].rpartition("/")[2])

    yield kill
    system.run("delete", "pod", "killer", "--wait=false")


def test_worker_ports_admit_the_deployments_own_pods_and_labelled_scrapers_only(busy: Busy) -> None:
    policies = busy.kube.items("networkpolicies")
    prefill, decode, router = (peer_of(busy.kube, workers(busy.kube, role)[0]) for role in ROLES)
    stranger = peer_of(busy.kube, busy.kube.get("pod", "traffic"))
    others = replace(router, labels=router.labels | {"serving.penstock.dev/deployment": "other"})
    scraper = Peer("monitoring", {}, {"serving.penstock.dev/metrics": "true"})
    for worker in (prefill, decode):
        assert admits(policies, worker, router, 8100)
        assert not admits(policies, worker, router, 40000), "routers move no KV blocks"
        assert admits(policies, worker, prefill, 40000)
        assert admits(policies, worker, decode, 8100)
        assert admits(policies, worker, scraper, 8100)
        assert not admits(policies, worker, scraper, 40000)
        for source in (stranger, others, replace(router, namespace="elsewhere"), replace(scraper, namespace_labels={})):
            assert not admits(policies, worker, source, 8100)
    assert admits(policies, router, stranger, 8000)


@pytest.mark.slow
def test_an_outage_of_the_api_server_costs_no_request(busy: Busy, penstock: Kube) -> None:
    """Neither operators nor router reach it while a worker goes, an object is deleted and the user wants more."""
    router = busy.kube.items("pods", f"serving.penstock.dev/deployment={NAME},serving.penstock.dev/role=router")[0]
    first = workers(busy.kube, "decode")[0]["metadata"]["name"]
    with busy.traffic.unbroken():
        with ExitStack() as cuts:
            for pod in operators(penstock):
                cuts.enter_context(cut(penstock, pod, API_SERVER))
            cuts.enter_context(cut(busy.kube, router["metadata"]["name"], API_SERVER))
            began = time.monotonic()
            busy.kube.run("delete", "pod", first, "--wait=false")
            busy.kube.run("delete", "networkpolicy", f"{NAME}-workers")
            busy.apply(decode={"replicas": 3})
            time.sleep(began + OUTAGE_S - time.monotonic())
            assert busy.kube.items("networkpolicies") == [], "the operator was not cut off"
            back = time.monotonic()

        def is_repaired() -> bool:
            decode = busy.kube.get("llmpool", f"{NAME}-decode")["spec"]["replicas"]
            return bool(decode == 3 and busy.kube.items("networkpolicies"))

        eventually(is_repaired, "the operator acts", within_s=REPAIR_S)
        took = time.monotonic() - back  # mending the network of three pods is part of it
        print(f"repaired {took:.1f} s after the API server was back")
        assert took < REPAIR_S
        busy.wait_complete()
        eventually(lambda: known_workers(busy.kube, NAME) == addresses(busy.kube, NAME), "the router knows the workers")


def peer_of(kube: Kube, pod: Object) -> Peer:
    labels = json.loads(run("kubectl", "get", "namespace", kube.namespace, "--output", "json"))["metadata"]["labels"]
    return Peer(kube.namespace, pod["metadata"]["labels"], labels)
