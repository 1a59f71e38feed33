"""LLMDeployments that need no pods, and everything an operator makes of them, as tests of faults compare it."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.kube import Kube, Object, eventually, run

KINDS = (
    "llmpools,deployments,services,controllerrevisions,networkpolicies,poddisruptionbudgets,serviceaccounts,"
    "roles.rbac.authorization.k8s.io,rolebindings,configmaps,secrets"
)
OURS = "app.kubernetes.io/managed-by=penstock"
REPAIR_S = 5.0


def manifest(name: str = "demo", uri: str = "file:///models/penstock-demo", **metadata: Object) -> str:
    """An LLMDeployment of two workers of each kind."""
    spec = {"model": {"uri": uri}, "prefill": {"replicas": 2, "gpus": 0}, "decode": {"replicas": 2, "gpus": 0}}
    body = {"apiVersion": "serving.penstock.dev/v1alpha1", "kind": "LLMDeployment"}
    return json.dumps(body | {"metadata": {"name": name} | metadata, "spec": spec})


@contextmanager
def new_namespace() -> Iterator[Kube]:
    """Empty; afterwards nothing may be left."""
    kube = Kube(f"operator-faults-{os.getpid()}-{time.monotonic_ns() % 100_000}")
    run("kubectl", "create", "namespace", kube.namespace)
    yield kube
    kube.run("delete", "llmd", "--all", "--wait=false")
    eventually(lambda: ours(kube) == {}, "nothing is left", within_s=60)
    run("kubectl", "delete", "namespace", kube.namespace, "--wait=false")


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
