"""The release's life: upgrade, a hand-made edit in its way, rollback."""

import json

import pytest

from tests.charts.conftest import CHART
from tests.cluster.conftest import RELEASE, SYSTEM, VALUES
from tests.cluster.kube import CommandFailed, Kube, eventually, run

OPERATOR = "penstock-operator"


def upgrade(*options: str) -> None:
    waiting = ("--wait", "--timeout", "120s")
    run("helm", "upgrade", RELEASE, str(CHART), "--namespace", SYSTEM, *VALUES, *waiting, *options)


def replicas(system: Kube) -> int:
    found: int = system.get("deployment", OPERATOR)["spec"]["replicas"]
    return found


def revision() -> int:
    history = json.loads(run("helm", "history", RELEASE, "--namespace", SYSTEM, "--output", "json"))
    return max(entry["revision"] for entry in history)


def test_upgrade_and_rollback(penstock: Kube) -> None:
    before = revision()
    upgrade("--set", "operator.replicas=1")
    assert replicas(penstock) == 1
    run("helm", "rollback", RELEASE, str(before), "--namespace", SYSTEM, "--wait", "--timeout", "120s")
    assert replicas(penstock) == 2


def test_an_edit_by_hand_stops_an_upgrade_with_the_field_in_the_message_until_it_is_overruled(penstock: Kube) -> None:
    penstock.run("patch", "deployment", OPERATOR, "--type=merge", "--patch", '{"spec":{"replicas":3}}')
    with pytest.raises(CommandFailed, match=r"conflict.*\n?.*\.spec\.replicas"):
        upgrade("--set", "operator.replicas=1")
    assert replicas(penstock) == 3
    upgrade("--force-conflicts")
    assert replicas(penstock) == 2


@pytest.mark.usefixtures("penstock")
def test_a_lost_crd_field_comes_back_with_an_upgrade() -> None:
    """CRDs upgrade with the release: Helm would leave those of a folder crds/ as they are."""
    name = "llmpools.serving.penstock.dev"
    run("kubectl", "patch", "crd", name, "--type=json", "--patch", '[{"op":"remove","path":"/metadata/labels"}]')
    upgrade("--force-conflicts")
    labels = json.loads(run("kubectl", "get", "crd", name, "--output", "json"))["metadata"].get("labels", {})
    assert labels.get("app.kubernetes.io/name") == "penstock"


def test_both_replicas_are_ready_and_one_leads(penstock: Kube) -> None:
    def pods() -> list[str]:
        found = penstock.items("pods", f"app.kubernetes.io/name={OPERATOR}")
        return [pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def leaders() -> float:
        return sum(penstock.metrics(pod, 8080)["penstock_operator_leading"] for pod in pods())

    eventually(lambda: len(pods()) == 2, "two replicas")

    eventually(lambda: leaders() == 1, "one leads", within_s=15)
