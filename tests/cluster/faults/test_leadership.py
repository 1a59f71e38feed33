"""One leads: it leaves when it is cut off, gives the lead back when it is told to stop, is replaced when it dies."""

import os
import time
from pathlib import Path

import pytest

from tests.cluster.faults.objects import REPAIR_S, complete, manifest, ours
from tests.cluster.kube import Kube, eventually
from tests.cluster.own_operator import OwnOperator, Proxy, through

pytestmark = pytest.mark.slow


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
