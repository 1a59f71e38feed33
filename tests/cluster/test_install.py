"""Other ways to install: for one namespace, and without Helm. Each operator must make a deployment Ready."""

import os
from pathlib import Path

import pytest
import yaml

from tests.charts.conftest import CHART, ROOT
from tests.cluster.conftest import VALUES, new_namespace
from tests.cluster.kube import Kube, run
from tests.cluster.own_operator import installed_operators_stand_aside
from tests.cluster.test_end_to_end import small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("crds")]  # slow: when the other tests' operator is gone
OPERATOR = "app.kubernetes.io/name=penstock-operator"
OVERLAY = ROOT / "examples" / "kustomize" / "kustomization.yaml"


def serves(kube: Kube, system: Kube) -> None:
    """A deployment becomes Ready, and the operator is refused nothing meanwhile."""
    kube.apply(small("served"))
    print(f"ready after {kube.wait_ready('served'):.1f} s")
    pods = [pod["metadata"]["name"] for pod in system.items("pods", OPERATOR)]
    assert [name for pod in pods for name in system.metrics(pod, 8080) if 'status="403"' in name] == []


def test_an_operator_for_one_namespace_serves_there_and_nowhere_else() -> None:
    with (
        installed_operators_stand_aside(),
        new_namespace() as system,
        new_namespace() as watched,
        new_namespace() as other,
    ):
        release = ("one-namespace", "--namespace", system.namespace)
        mode = ("--set", f"watchNamespace={watched.namespace}", "--set", "crds.install=false")
        run("helm", "install", *release, str(CHART), *VALUES, *mode, "--wait", "--timeout", "120s")
        try:
            roles = run("kubectl", "get", "clusterroles,clusterrolebindings", "--output", "name")
            assert "one-namespace" not in roles
            other.apply(small("ignored"))
            serves(watched, system)
            assert "status" not in other.get("llmd", "ignored")
            assert other.items("deployments") == []
        finally:
            run("helm", "uninstall", *release, "--wait", "--timeout", "60s")


def test_the_kustomize_base_serves_with_images_of_a_registry_of_ones_own(tmp_path: Path) -> None:
    roles = run("kubectl", "get", "clusterroles", "--output", "name").split()
    if "clusterrole.rbac.authorization.k8s.io/penstock-operator" in roles:
        pytest.skip("Penstock is installed here, and the plain manifests would take its place")
    base = os.path.relpath(ROOT / "charts" / "manifests", tmp_path)
    overlay = OVERLAY.read_text().replace("../../charts/manifests", base)
    overlay = overlay.replace("registry.example.com/", "").replace("0.1.0", "test")
    (tmp_path / "kustomization.yaml").write_text(overlay)
    run("kubectl", "apply", "--server-side", "--force-conflicts", "--kustomize", str(tmp_path))
    system = Kube("penstock-system")
    try:
        system.run("rollout", "status", "deployment/penstock-operator", "--timeout=90s")
        with new_namespace() as kube:
            serves(kube, system)
    finally:
        objects = list(yaml.safe_load_all(run("kubectl", "kustomize", str(tmp_path))))
        ours = [found for found in objects if found["kind"] != "CustomResourceDefinition"]
        run("kubectl", "delete", "--filename", "-", "--wait=false", text=yaml.safe_dump_all(ours))
