"""An API server that answers badly, and one that is asked for a lot at once."""

import json
import time

import pytest

from tests.cluster.faults.objects import complete, manifest, ours, settled
from tests.cluster.faults.unlucky_operator import TROUBLES
from tests.cluster.kube import Kube, eventually
from tests.cluster.own_operator import OwnOperator

pytestmark = pytest.mark.slow
BURST = 200


def test_with_conflicts_throttling_errors_lost_answers_and_expired_watches_it_comes_to_the_same(
    kube: Kube, operator: OwnOperator
) -> None:
    operator.start("tests.cluster.faults.unlucky_operator")
    for name in ("stays", "changes", "goes"):
        kube.apply(manifest(name))
    eventually(lambda: all(complete(kube, name) for name in ("stays", "changes", "goes")), "all are made")
    kube.run("delete", "llmd", "goes")
    kube.run("delete", "service,deployment,configmap", "stays-router", "--ignore-not-found")
    kube.apply(manifest("changes", uri="pvc://models/other"))

    def is_done() -> bool:
        found = ours(kube)
        changed = [json.dumps(item) for name, item in found.items() if name.startswith("Deployment/changes-prefill")]
        return (
            all("pvc://models/other" in item for item in changed)
            and {"Deployment/stays-router", "ConfigMap/stays-router"} <= found.keys()
            and not any("/goes" in name for name in found)
        )

    try:
        eventually(is_done, "all is as it should be")
    finally:
        print(sorted(ours(kube)))
    found = settled(kube)
    met = {trouble: operator.log.count(f"trouble: {trouble}") for trouble in TROUBLES}
    print(met)
    assert all(met.values())
    operator.stop()
    operator.start()
    kube.run("delete", "configmap", "stays-router")
    eventually(lambda: ours(kube) == found, "a healthy operator repairs what it finds, and changes nothing else")


def test_of_two_hundred_created_in_one_burst_none_is_lost(kube: Kube, operator: OwnOperator) -> None:
    """Without pods, which the shared node could not hold (bench.operator_scale simulates them)."""
    names = [f"burst-{index}" for index in range(BURST)]
    idle = {role: {"replicas": 0} for role in ("prefill", "decode", "router")}
    items = [json.loads(manifest(name)) for name in names]
    for item in items:
        item["spec"] |= idle
    operator.start()
    began = time.monotonic()
    kube.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

    def told() -> set[str]:
        found = kube.items("llmd")
        return {item["metadata"]["name"] for item in found if item.get("status", {}).get("conditions")}

    eventually(lambda: told() == set(names), "every status is written", within_s=120)
    print(f"{BURST} told of after {time.monotonic() - began:.1f} s")
    found = ours(kube)
    for name in names:
        assert {f"Service/{name}", f"Deployment/{name}-router", f"NetworkPolicy/{name}-workers"} <= found.keys()
        assert sum(item.startswith(f"Deployment/{name}-") for item in found) == 3
    assert operator.log.count(" ERROR ") == 0
