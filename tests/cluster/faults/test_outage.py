"""Killed at every request, cut off for a minute: the operator comes to the same objects, and nothing comes back."""

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cluster.faults.objects import REPAIR_S, complete, manifest, new_namespace, ours, settled
from tests.cluster.kube import Kube, eventually
from tests.cluster.own_operator import OwnOperator, Proxy, new_operator, new_proxy

pytestmark = pytest.mark.slow
OUTAGE_S = 60.0
WORKERS = ("prefill", "decode")


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
        operator.start("tests.cluster.faults.crashing_operator", "1")
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
