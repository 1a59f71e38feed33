"""Every example is something the operator takes, and Argo CD's health check says what the operator means."""

import re
from pathlib import Path
from typing import Any

import cel
import lupa
import msgspec
import pytest
import yaml

from penstock.operator import names
from penstock.operator.api import API_VERSION, Spec
from penstock.operator.problems import Problem
from tests.charts.conftest import CHART, ROOT
from tests.operator.world import World, upgraded

EXAMPLES = ROOT / "examples"
FILES = sorted(EXAMPLES.rglob("*.yaml"))
ARGOCD_KEY = "resource.customizations.health.serving.penstock.dev_"


def deployments(text: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(text) if found.get("kind") == "LLMDeployment"]


def check_spec(spec: dict[str, Any]) -> None:
    """Decodes, with nothing lost: an unknown field would be."""
    decoded = msgspec.to_builtins(msgspec.convert(spec, Spec))
    assert contains(decoded, spec), f"unknown fields in {spec}"


def contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], part[key]) for key in part)
    return bool(whole == part)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_every_llm_deployment_of_the_examples_is_valid(file: Path) -> None:
    objects = list(yaml.safe_load_all(file.read_text()))
    assert all(found["apiVersion"] and found["kind"] for found in objects)
    for found in deployments(file.read_text()):
        assert found["apiVersion"] == API_VERSION
        check_spec(found["spec"])


def test_the_examples_are_listed_and_the_first_has_ten_lines_at_most() -> None:
    page = (EXAMPLES / "README.md").read_text()
    for file in EXAMPLES.glob("*.yaml"):
        assert f"]({file.name})" in page
    assert len((EXAMPLES / "01-demo.yaml").read_text().splitlines()) <= 10


def test_the_deployment_in_the_notes_is_valid() -> None:
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    manifest = notes.partition("<<END\n")[2].partition("  END\n")[0]
    lines = [line for line in manifest.splitlines() if "{{" not in line and "namespace:" not in line]
    (found,) = deployments("\n".join(lines))
    check_spec(found["spec"])


def argocd_health(kind: str, item: dict[str, Any]) -> tuple[str, str]:
    """What the Lua in argocd-cm.yaml says, run as Argo CD runs it: with the object as the global `obj`."""
    config = yaml.safe_load((EXAMPLES / "gitops/argocd/argocd-cm.yaml").read_text())
    lua = lupa.LuaRuntime(unpack_returned_tuples=True)
    lua.globals().obj = to_lua(lua, item)
    health = lua.execute(config["data"][ARGOCD_KEY + kind])
    return health["status"], health["message"]


def to_lua(lua: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return lua.table_from({key: to_lua(lua, inner) for key, inner in value.items()})
    if isinstance(value, list):
        return lua.table_from([to_lua(lua, inner) for inner in value])
    return value


def deployment(
    ready: str | None, progress: tuple[str, str] = ("False", "Complete"), *, generation: int = 2, observed: int = 2
) -> dict[str, Any]:
    status, reason = progress
    conditions = [{"type": "Progressing", "status": status, "reason": reason, "message": "the progress"}]
    conditions += [{"type": "Degraded", "status": "False", "reason": "AsExpected", "message": "no"}]
    if ready is not None:
        conditions.append({"type": "Ready", "status": ready, "reason": "Why", "message": "the sentence"})
    status = {"observedGeneration": observed, "conditions": conditions}
    return {"metadata": {"generation": generation}, "status": status}


@pytest.mark.parametrize(
    ("item", "status", "message"),
    [
        (deployment("True"), "Healthy", "the sentence"),
        (deployment("False"), "Degraded", "the sentence"),
        (deployment("Unknown", ("True", "Starting")), "Progressing", "the sentence"),
        (deployment("True", ("True", "RollingOut")), "Progressing", "the progress"),
        (deployment("True", ("False", "ImagePullFailed")), "Degraded", "the progress"),
        (deployment(None), "Progressing", "Waiting for the operator"),
        (deployment("True", generation=3), "Progressing", "The operator has not seen this spec yet"),
        ({"metadata": {"generation": 1}}, "Progressing", "Waiting for the operator"),
        ({"metadata": {"generation": 1}, "status": {}}, "Progressing", "Waiting for the operator"),
    ],
)
def test_argo_cd_shows_what_the_ready_condition_says(item: dict[str, Any], status: str, message: str) -> None:
    assert argocd_health("LLMDeployment", item) == (status, message)


def flux_state(item: dict[str, Any]) -> str:
    """The first of Flux's expressions that is true, in its order; "" while it goes on waiting."""
    (check,) = yaml.safe_load((EXAMPLES / "gitops/flux/kustomization.yaml").read_text())["spec"]["healthCheckExprs"]
    return next((name for name in ("inProgress", "failed", "current") if cel.evaluate(check[name], item)), "")


@pytest.mark.parametrize(
    ("item", "state"),
    [
        (deployment("True"), "current"),
        (deployment("False"), "failed"),
        (deployment("Unknown", ("True", "Starting")), "inProgress"),
        (deployment("True", ("True", "RollingOut")), "inProgress"),
        (deployment("True", ("False", "ImagePullFailed")), "failed"),
        (deployment("True", generation=3), "inProgress"),
    ],
)
def test_flux_waits_and_fails_as_the_conditions_say(item: dict[str, Any], state: str) -> None:
    assert flux_state(item) == state


def test_a_commit_that_cannot_work_is_not_healthy_although_the_former_one_serves() -> None:
    world = World()
    world.settle()
    item = {"metadata": {"generation": 1}, "status": msgspec.to_builtins(world.status)}
    assert argocd_health("LLMDeployment", item)[0] == "Healthy"
    world.config = upgraded(world)
    world.generation = 2
    revision = world.plan().status.next_revision
    world.broken[revision] = Problem(6, "ImagePullFailed", "image penstock/worker:next cannot be pulled")
    world.settle()
    item = {"metadata": {"generation": 2}, "status": msgspec.to_builtins(world.status)}
    status, message = argocd_health("LLMDeployment", item)
    assert status == "Degraded"
    assert "cannot be pulled" in message
    assert flux_state(item) == "failed"
    assert world.condition("Ready").status == "True"


def test_argo_cd_takes_pools_as_healthy() -> None:
    assert argocd_health("LLMPool", {}) == ("Healthy", None)


def test_the_network_policy_of_the_how_to_selects_the_routers_and_their_port() -> None:
    page = (ROOT / "docs" / "how-to" / "limit-and-share.md").read_text()
    [block] = re.findall(r"```yaml\n(apiVersion: networking.k8s.io/v1\n.*?)```", page, re.DOTALL)
    spec = yaml.safe_load(block)["spec"]
    assert spec["podSelector"]["matchLabels"] == names.selector("demo", "router")
    assert [rule["ports"] for rule in spec["ingress"]] == [[{"port": names.ROUTER_PORT}]]
