"""A real operator on a real API server: killed at every request, cut off, replaced; objects edited, deleted, made anew.

Pods need not run for this, so a control plane without nodes will do. The operator is a process of this test.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.cli import main
from tests.cluster.kube import Kube, Object, eventually, run
from tests.cluster.own_operator import (
    OwnOperator,
    Proxy,
    api_address,
    installed_operators_stand_aside,
    through,
)

pytestmark = pytest.mark.slow
KINDS = (
    "llmpools,deployments,services,controllerrevisions,networkpolicies,poddisruptionbudgets,serviceaccounts,"
    "roles.rbac.authorization.k8s.io,rolebindings,configmaps,secrets"
)
REPAIR_S = 5.0
OUTAGE_S = 60.0
WORKERS = ("prefill", "decode")
OURS = "app.kubernetes.io/managed-by=penstock"


def manifest(name: str = "demo", uri: str = "file:///models/penstock-demo", **metadata: Object) -> str:
    spec = {"model": {"uri": uri}, "prefill": {"replicas": 2, "gpus": 0}, "decode": {"replicas": 2, "gpus": 0}}
    body = {"apiVersion": "serving.penstock.dev/v1alpha1", "kind": "LLMDeployment"}
    return json.dumps(body | {"metadata": {"name": name} | metadata, "spec": spec})


@pytest.fixture(scope="module", autouse=True)
def alone(crds: None) -> Iterator[None]:  # noqa: ARG001
    with installed_operators_stand_aside():
        yield


@contextmanager
def new_namespace() -> Iterator[Kube]:
    kube = Kube(f"operator-faults-{os.getpid()}-{time.monotonic_ns() % 100_000}")
    run("kubectl", "create", "namespace", kube.namespace)
    yield kube
    kube.run("delete", "llmd", "--all", "--wait=false")
    eventually(lambda: ours(kube) == {}, "nothing is left", within_s=60)
    run("kubectl", "delete", "namespace", kube.namespace, "--wait=false")


@contextmanager
def new_proxy() -> Iterator[Proxy]:
    proxy = Proxy(*api_address(Path(os.environ["KUBECONFIG"])))
    yield proxy
    proxy.stop()


@contextmanager
def new_operator(kube: Kube, proxy: Proxy, folder: Path) -> Iterator[OwnOperator]:
    """Not started yet."""
    kubeconfig = through(proxy, Path(os.environ["KUBECONFIG"]), folder / "kubeconfig")
    operator = OwnOperator(kubeconfig, kube.namespace, folder / "operator.log")
    yield operator
    operator.stop()
    print(operator.log[-4000:])


@pytest.fixture
def kube() -> Iterator[Kube]:
    with new_namespace() as kube:
        yield kube


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with new_proxy() as proxy:
        yield proxy


@pytest.fixture
def operator(kube: Kube, proxy: Proxy, tmp_path: Path) -> Iterator[OwnOperator]:
    with new_operator(kube, proxy, tmp_path) as operator:
        yield operator


@dataclass(frozen=True)
class Outage:
    """An operator's API server has gone."""

    kube: Kube
    proxy: Proxy
    began: float
    uids: dict[str, str]
    """Of the Deployments that must stay as they are."""


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    """Objects are created, changed and deleted while the API server cannot be reached, from one operator. Another test
    may go on meanwhile, with operators of its own."""
    with (
        new_namespace() as kube,
        new_proxy() as proxy,
        new_operator(kube, proxy, tmp_path_factory.mktemp("outage")) as operator,
    ):
        for name in ("stays", "changes", "goes", "again"):
            kube.apply(manifest(name))
        operator.keep_running()
        eventually(lambda: all(complete(kube, name) for name in ("stays", "changes", "goes", "again")), "all are made")
        uids = {name: kube.get("deployment", f"{name}-router")["metadata"]["uid"] for name in ("stays", "changes")}
        proxy.cut()
        began = time.monotonic()
        kube.run("delete", "llmd", "goes", "again")
        kube.apply(manifest("again"))
        kube.apply(manifest("comes"))
        kube.apply(manifest("changes", uri="pvc://models/other"))
        kube.run("delete", "service", "stays")
        yield Outage(kube, proxy, began, uids)


def ours(kube: Kube) -> dict[str, Object]:
    """Every object of Penstock by kind and name, without what differs from run to run."""
    found = {}
    for item in kube.items(KINDS, OURS):
        metadata = item["metadata"]
        for key in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
            metadata.pop(key, None)
        for key in ("deployment.kubernetes.io/revision", "serving.penstock.dev/applied"):  # it covers the owner's uid
            metadata.get("annotations", {}).pop(key, None)
        pods = item.get("spec", {}).get("template", {}).get("metadata", {})
        pods.get("annotations", {}).pop("serving.penstock.dev/account", None)  # routers start anew with a new account
        item.pop("status", None)
        for key in ("clusterIP", "clusterIPs"):
            item.get("spec", {}).pop(key, None)
        item.pop("data", None) if item["kind"] == "Secret" else None
        found[f"{item['kind']}/{metadata['name']}"] = item
    return json.loads(re.sub(r'"uid": "[^"]+"', '"uid": "-"', json.dumps(found)))  # type: ignore[no-any-return]


def complete(kube: Kube, name: str = "demo") -> bool:
    """The operator has made everything, and said so."""
    status = kube.get("llmd", name).get("status", {})
    return bool(status.get("conditions")) and {f"Deployment/{name}-router", f"Service/{name}"} <= ours(kube).keys()


def settled(kube: Kube) -> dict[str, Object]:
    """All objects, once they have stopped changing for a second."""
    last: dict[str, Object] = {}
    still = 0.0

    def unchanged() -> bool:
        nonlocal last, still
        now = ours(kube)
        if now != last:
            last, still = now, time.monotonic()
        return bool(now) and time.monotonic() - still > 1.0

    eventually(unchanged, "objects stop changing")
    return last


@pytest.mark.usefixtures("outage")
def test_killed_after_every_single_request_it_converges_to_the_same_objects(kube: Kube, operator: OwnOperator) -> None:
    kube.apply(manifest())
    operator.start()
    eventually(lambda: complete(kube), "the first operator makes everything")
    expected = settled(kube)
    operator.stop()
    kube.run("delete", "llmd", "demo")
    eventually(lambda: ours(kube) == {}, "all is deleted")
    kube.apply(manifest())
    lives = 0
    while lives < 60:
        operator.start(crash_after=1)
        try:
            operator.wait_ended(6 if ours(kube).keys() == expected.keys() else 30)
        except subprocess.TimeoutExpired:
            break  # nothing left to do, so nothing to die of
        lives += 1
        kube.run("delete", "lease", "test", "--ignore-not-found")  # its Lease would hold up the next for 10 s
    operator.kill()
    assert lives >= len(expected)
    kube.run("delete", "lease", "test", "--ignore-not-found")
    operator.start()
    eventually(lambda: complete(kube), "the last operator has nothing more to do")
    found = settled(kube)
    for name, item in expected.items():
        assert json.dumps(found[name], indent=1, sort_keys=True) == json.dumps(item, indent=1, sort_keys=True)
    assert found.keys() == expected.keys()


def test_an_outage_with_changes_and_deletions_meanwhile(outage: Outage) -> None:
    time.sleep(max(0.0, outage.began + OUTAGE_S - time.monotonic()))
    outage.proxy.restore()
    kube = outage.kube

    def is_repaired() -> bool:
        found = ours(kube)
        changed = [json.dumps(item) for name, item in found.items() if name.startswith("Deployment/changes-prefill")]
        return (
            "Service/stays" in found
            and all(complete(kube, name) for name in ("comes", "again"))
            and any("pvc://models/other" in item for item in changed)
        )

    took = eventually(is_repaired, "all is as it should be", within_s=REPAIR_S)
    print(f"all repaired {took:.1f} s after the API server was back")
    found = settled(kube)
    assert {name: kube.get("deployment", f"{name}-router")["metadata"]["uid"] for name in outage.uids} == outage.uids
    assert not [name for name in found if "/goes" in name], "a deleted deployment came back"
    workloads = sorted(name.rpartition("-")[0] for name in found if name.startswith("Deployment/"))
    parts = ("", *(f"-{role}" for role in WORKERS))  # of one revision each
    assert workloads == sorted(
        f"Deployment/{name}{part}" for name in (*outage.uids, "comes", "again") for part in parts
    )


def test_edited_and_deleted_objects_are_repaired_within_five_seconds(kube: Kube, operator: OwnOperator) -> None:
    kube.apply(manifest())
    operator.start()
    eventually(lambda: complete(kube), "everything is there")
    expected = settled(kube)
    for name in sorted(set(expected) - {"Secret/demo-hash"}):
        kube.run("delete", name.replace("Role/", "role.rbac.authorization.k8s.io/"), "--wait=false")
        eventually(lambda: ours(kube) == expected, f"{name} comes back", within_s=REPAIR_S)
    workload = next(name for name in expected if name.startswith("Deployment/demo-decode"))
    for kind, change in {
        "service/demo": {"spec": {"selector": {"app": "other"}}},
        "networkpolicy/demo-workers": {"spec": {"ingress": [{}]}},
        "rolebinding/demo-router": {"subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "x"}]},
        "configmap/demo-router": {"data": {"PENSTOCK_FLAG_PORT": "1"}},
        "poddisruptionbudget/demo-decode": {"metadata": {"ownerReferences": None}},
        workload: {"spec": {"replicas": 7}},
    }.items():
        kube.run("patch", kind, "--type=merge", "--patch", json.dumps(change))
        eventually(lambda: ours(kube) == expected, f"{kind} is repaired", within_s=REPAIR_S)
    kube.run("label", "configmap", "demo-router", "app.kubernetes.io/managed-by-")
    kube.run("annotate", "networkpolicy", "demo-workers", "serving.penstock.dev/applied-")
    eventually(lambda: ours(kube) == expected, "a label and an annotation are back", within_s=REPAIR_S)


def test_replicas_hold_through_applies_and_restarts_in_every_order(kube: Kube, operator: OwnOperator) -> None:
    kube.apply(manifest())
    operator.start()
    eventually(lambda: complete(kube), "everything is there")
    pool = ("llmpool", "demo-decode")

    def replicas() -> tuple[int, int]:
        deployment = next(m for n, m in ours(kube).items() if n.startswith("Deployment/demo-decode"))
        return kube.get(*pool)["spec"]["replicas"], deployment["spec"]["replicas"]

    for count, disturb in enumerate(("apply", "restart", "replace", "annotation"), start=3):
        kube.run("scale", "/".join(pool), f"--replicas={count}")
        if disturb == "apply":
            assert "serverside-applied" in kube.apply(manifest())
        elif disturb == "restart":
            operator.stop()
            operator.start()
        elif disturb == "replace":
            kube.run("replace", "-f", "-", text=manifest())
        else:
            kube.run("annotate", "/".join(pool), "serving.penstock.dev/applied-")
        eventually(lambda count=count: replicas() == (count, count), f"{count} replicas after {disturb}", within_s=10)  # type: ignore[misc]
    generation = kube.get("llmd", "demo")["metadata"]["generation"]
    kube.apply(manifest())
    assert kube.get("llmd", "demo")["metadata"]["generation"] == generation


def test_a_frozen_connection_does_not_keep_a_leader(kube: Kube, operator: OwnOperator, proxy: Proxy) -> None:
    kube.apply(manifest())
    operator.start()
    eventually(lambda: complete(kube), "everything is there")
    proxy.freeze()
    began = time.monotonic()
    assert operator.wait_ended(30) == 1
    assert time.monotonic() - began < 13
    assert "could not be renewed" in operator.log
    proxy.restore()


def test_the_second_operator_acts_within_twelve_seconds_of_the_first_ones_death(
    kube: Kube, operator: OwnOperator, proxy: Proxy, tmp_path: Path
) -> None:
    operator.start()
    kube.apply(manifest())
    eventually(lambda: complete(kube), "the first one leads")
    second = OwnOperator(
        through(proxy, Path(os.environ["KUBECONFIG"]), tmp_path / "second"), kube.namespace, tmp_path / "second.log"
    )
    second.start()
    try:
        time.sleep(3)  # it stands by
        operator.kill()
        kube.run("delete", "service", "demo")
        took = eventually(lambda: "Service/demo" in ours(kube), "the second one acts", within_s=14)
        print(f"failover: {took:.1f} s")
        assert took < 12
    finally:
        second.stop()


def test_a_leader_that_is_told_to_stop_gives_the_lead_back(kube: Kube, operator: OwnOperator) -> None:
    kube.apply(manifest())
    operator.start()
    eventually(lambda: complete(kube), "everything is there")
    began = time.monotonic()
    operator.stop()
    print(f"stopped after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 3
    assert kube.get("lease", "test")["spec"]["holderIdentity"] == ""
    kube.run("delete", "service", "demo")
    operator.start()
    eventually(lambda: "Service/demo" in ours(kube), "the next one begins at once", within_s=REPAIR_S)


def test_somebody_elses_object_is_not_taken(kube: Kube, operator: OwnOperator) -> None:
    kube.run("create", "configmap", "demo-router", "--from-literal=mine=1")
    kube.run("create", "service", "clusterip", "demo", "--tcp=1234")
    kube.apply(manifest())
    kube.apply(manifest("other"))
    operator.start()
    eventually(lambda: complete(kube, "other"), "another deployment is not held up", within_s=15)
    eventually(lambda: kube.condition("demo", "Degraded").get("reason") == "Refused", "it says so", within_s=15)
    assert "Service demo exists and is not Penstock's" in kube.condition("demo", "Degraded")["message"]
    assert kube.get("service", "demo")["spec"]["ports"][0]["port"] == 1234
    kube.run("delete", "service", "demo")
    eventually(lambda: complete(kube), "it is made once the name is free", within_s=15)
    kube.run("delete", "configmap", "demo-router")


def test_unicode_and_the_longest_name(kube: Kube, operator: OwnOperator) -> None:
    name = "n" * 40
    kube.apply(manifest(name, annotations={"note": "größer 日本語 🚰"}))
    operator.start()
    eventually(lambda: complete(kube, name), "everything is there")
    assert kube.condition(name, "Degraded").get("reason") != "Refused"


def test_status_and_doctor_say_what_is_wrong(
    kube: Kube, operator: OwnOperator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--operator-namespace", kube.namespace, "--lease-name", "test"]) == 1
    assert "no Lease test in namespace" in capsys.readouterr().out
    kube.apply(manifest())
    operator.start()
    eventually(lambda: complete(kube), "everything is there")
    main(["doctor", "--operator-namespace", kube.namespace, "--lease-name", "test"])
    said = capsys.readouterr().out
    for line in ("ok    CRD          llmdeployments", "leads", "you may apply LLMDeployments"):
        assert line in said
    assert main(["status", "demo", "--namespace", kube.namespace]) == 1
    said = capsys.readouterr().out
    for part in (f"{kube.namespace}/demo: ", "prefill", "0/2", "KVTransferVerified"):
        assert part in said
    assert main(["status", "nobody", "--namespace", kube.namespace]) == 2
    assert "there is no LLMDeployment nobody" in capsys.readouterr().err
