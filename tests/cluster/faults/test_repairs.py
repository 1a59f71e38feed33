"""Somebody edits, deletes, scales, or owns the name already: what is ours is repaired, what is not stays."""

import json

import pytest

from penstock.cli import main
from tests.cluster.faults.objects import OURS, REPAIR_S, complete, manifest, ours, settled
from tests.cluster.kube import Kube, eventually
from tests.cluster.own_operator import OwnOperator

pytestmark = pytest.mark.slow


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
        "serviceaccount/demo-router": {"metadata": {"ownerReferences": None}},
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
            kube.replace(manifest())
        else:
            kube.run("annotate", "/".join(pool), "serving.penstock.dev/applied-")
        eventually(lambda count=count: replicas() == (count, count), f"{count} replicas after {disturb}", within_s=10)  # type: ignore[misc]
    generation = kube.get("llmd", "demo")["metadata"]["generation"]
    kube.apply(manifest())
    assert kube.get("llmd", "demo")["metadata"]["generation"] == generation


def test_somebody_elses_object_is_not_taken(kube: Kube, operator: OwnOperator) -> None:
    kube.run("create", "configmap", "demo-router", "--from-literal=mine=1")
    kube.run("create", "serviceaccount", "demo-router")
    kube.run("create", "service", "clusterip", "demo", "--tcp=1234")
    kube.apply(manifest())
    kube.apply(manifest("other"))
    operator.start()
    eventually(lambda: complete(kube, "other"), "another deployment is not held up", within_s=15)
    eventually(lambda: kube.condition("demo", "Degraded").get("reason") == "Refused", "it says so", within_s=15)
    assert "exists and is not Penstock's" in kube.condition("demo", "Degraded")["message"]
    assert kube.condition("demo")["status"] == "False", "its URL leads to somebody else"
    assert kube.get("service", "demo")["spec"]["ports"][0]["port"] == 1234
    for kind, name in (("service", "demo"), ("configmap", "demo-router"), ("serviceaccount", "demo-router")):
        metadata = kube.get(kind, name)["metadata"]
        assert "ownerReferences" not in metadata
        assert OURS.partition("=")[0] not in metadata.get("labels", {})
        kube.run("delete", kind, name)
    eventually(lambda: complete(kube), "they are made once the names are free", within_s=15)
    eventually(lambda: kube.condition("demo", "Degraded").get("reason") != "Refused", "nothing is refused any more")


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
