"""The chart makes what it should for every Kubernetes version and mode, and refuses wrong values with a sentence."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from penstock.operator import api, names
from penstock.operator.config import OperatorConfig
from penstock.operator.crds import crds
from penstock.operator.rbac import lease_rules, rules
from penstock.router.flow.keys import new_key, parse_keys
from penstock.router.flow.tenants import Tenant
from tests.charts.conftest import CHART, ROOT, Helm

KUBERNETES = ("1.30.0", "1.31.4", "1.32.0", "1.33.2", "1.34.2")
MONITORS = ("--api-versions", "monitoring.coreos.com/v1/PodMonitor")
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}


def kinds(objects: Iterable[dict[str, Any]]) -> list[str]:
    return sorted(found["kind"] for found in objects)


def one(objects: Iterable[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [item for item in objects if item["kind"] == kind]
    return found


def pod_spec(helm: Helm, *options: str) -> dict[str, Any]:
    spec: dict[str, Any] = one(helm.template(*options), "Deployment")["spec"]["template"]["spec"]
    return spec


def test_lint_finds_nothing(helm: Helm) -> None:
    result = helm.run("lint", "--strict", str(CHART))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("namespace", ["", "team-a"])
def test_every_kubernetes_version_and_mode_gets_the_same_kinds(helm: Helm, version: str, namespace: str) -> None:
    objects = helm.template("--kube-version", version, "--set", f"watchNamespace={namespace}")
    role = "Role" if namespace else "ClusterRole"
    assert kinds(objects) == sorted(
        [
            *("CustomResourceDefinition", "CustomResourceDefinition", "Deployment", "ServiceAccount"),
            *(role, f"{role}Binding", "Role", "RoleBinding"),
        ]
    )
    for found in objects:
        expected = None if found["kind"] in CLUSTER_WIDE else "penstock-system"
        name = found["metadata"]["name"]
        if namespace and found["kind"] in ("Role", "RoleBinding") and not name.endswith("-lease"):
            expected = namespace
        assert found["metadata"].get("namespace") == expected, found["kind"]


def test_an_older_kubernetes_is_refused(helm: Helm) -> None:
    assert "requires kubeVersion: >=1.30.0-0" in helm.refusal("--kube-version", "1.29.0")


def test_bindings_bind_what_exists(helm: Helm) -> None:
    objects = helm.template()
    names = {(found["kind"], found["metadata"]["name"]) for found in objects}
    for found in objects:
        if found["kind"].endswith("Binding"):
            assert (found["roleRef"]["kind"], found["roleRef"]["name"]) in names
            for subject in found["subjects"]:
                assert (subject["kind"], subject["name"]) in names
    assert ("ServiceAccount", pod_spec(helm)["serviceAccountName"]) in names


def test_rules_and_crds_are_the_operators_own() -> None:
    rights = yaml.safe_load((CHART / "files" / "rbac.yaml").read_text())
    assert rights == {"rules": rules(), "leaseRules": lease_rules()}, "run: python -m penstock.operator.rbac --write"
    files = list(yaml.safe_load_all((CHART / "files" / "crds.yaml").read_text()))
    assert files == crds(), "run: python -m penstock.operator.crds --write"


def test_no_rule_is_a_wildcard_and_secrets_cannot_be_read() -> None:
    for rule in (*rules(), *lease_rules()):
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        if "secrets" in rule["resources"]:
            assert set(rule["verbs"]) <= {"create", "patch", "delete"}


def test_crds_upgrade_with_the_release_and_stay_when_it_goes(helm: Helm) -> None:
    found = [item for item in helm.template() if item["kind"] == "CustomResourceDefinition"]
    assert {item["spec"]["names"]["kind"] for item in found} == {"LLMDeployment", "LLMPool"}
    for item in found:
        assert item["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not (CHART / "crds").exists(), "Helm never upgrades what lies there"
    assert "CustomResourceDefinition" not in kinds(helm.template("--set", "crds.install=false"))


def test_every_setting_is_a_flag_of_the_operator(helm: Helm) -> None:
    flags = {f"PENSTOCK_FLAG_{field.name.upper()}" for field in dataclasses.fields(OperatorConfig)}
    for entry in pod_spec(helm)["containers"][0]["env"]:
        assert entry["name"] in flags


def test_images_have_the_charts_version_unless_told_otherwise(helm: Helm) -> None:
    def images(*options: str) -> tuple[str, ...]:
        container = pod_spec(helm, *options)["containers"][0]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        return (
            container["image"],
            *(env[f"PENSTOCK_FLAG_{name}"] for name in ("ROUTER_IMAGE", "WORKER_IMAGE_CPU", "WORKER_IMAGE_CUDA")),
        )

    control, worker = "penstock/control:0.1.0", "penstock/worker:0.1.0"
    assert images() == (control, control, worker, f"{worker}-cuda")
    digest = f"sha256:{'ab' * 32}"
    options = ("--set", "images.control.repository=r.io/c", "--set", f"images.control.digest={digest}")
    assert images(*options)[:2] == (f"r.io/c@{digest}",) * 2
    assert images("--set", "images.worker.tag=dev")[2] == "penstock/worker:dev"


def test_the_operator_may_run_where_pod_security_is_restricted(helm: Helm) -> None:
    spec = pod_spec(helm)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_selectors_choose_the_operators_pods_and_never_change(helm: Helm) -> None:
    deployment = one(helm.template(), "Deployment")
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector == {"app.kubernetes.io/name": "penstock-operator", "app.kubernetes.io/instance": "penstock"}
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_pod_monitors_are_made_where_their_kind_exists(helm: Helm) -> None:
    assert "PodMonitor" not in kinds(helm.template())
    assert kinds(helm.template(*MONITORS)).count("PodMonitor") == 2
    assert "PodMonitor" not in kinds(helm.template(*MONITORS, "--set", "podMonitor.enabled=false"))
    labelled = helm.template(*MONITORS, "--set", "podMonitor.labels.release=prom")
    monitors = [found for found in labelled if found["kind"] == "PodMonitor"]
    assert all(found["metadata"]["labels"]["release"] == "prom" for found in monitors)
    assert monitors[1]["spec"]["namespaceSelector"] == {"any": True}


def test_alert_rules_are_made_where_their_kind_exists(helm: Helm) -> None:
    rules = ("--api-versions", "monitoring.coreos.com/v1/PrometheusRule")
    assert "PrometheusRule" not in kinds(helm.template())
    assert "PrometheusRule" not in kinds(helm.template(*rules, "--set", "alerts.enabled=false"))
    found = one(helm.template(*rules, "--set", "alerts.labels.release=prom"), "PrometheusRule")
    assert found["metadata"]["labels"]["release"] == "prom"
    assert found["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())


def test_the_dashboard_is_made_on_request_for_the_sidecar_that_looks_for_it(helm: Helm) -> None:
    import json

    assert "ConfigMap" not in kinds(helm.template())
    options = ("--set", "dashboard.enabled=true")
    found = one(helm.template(*options), "ConfigMap")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["namespace"] == "penstock-system"
    assert json.loads(found["data"]["penstock.json"]) == json.loads((CHART / "files" / "dashboard.json").read_text())
    elsewhere = one(helm.template(*options, "--set", "dashboard.namespace=monitoring"), "ConfigMap")
    assert elsewhere["metadata"]["namespace"] == "monitoring"


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("operator.replica=3", "additional properties 'replica' not allowed"),
        ("operator.replicas=two", "at '/operator/replicas': got string, want integer"),
        ("operator.replicas=-1", "at '/operator/replicas': minimum: got -1, want 0"),
        ("images.pullPolicy=Sometimes", "value must be one of 'IfNotPresent', 'Always', 'Never'"),
        ("watchNamespace=Team_A", "at '/watchNamespace': 'Team_A' does not match pattern"),
        ("hubEndpoint=hub.example.com", "at '/hubEndpoint'"),
        ("images.worker.repository=", "at '/images/worker/repository'"),
        ("logs.format=xml", "value must be one of 'text', 'json'"),
        ("tracing.endpoint=collector:4318", "at '/tracing/endpoint'"),
        ("tracing.ratio=2", "at '/tracing/ratio': maximum: got 2, want 1"),
        ("crds.install=maybe", "at '/crds/install': got string, want boolean"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm: Helm, option: str, sentence: str) -> None:
    assert sentence in helm.refusal("--set", option)


def test_every_value_has_a_schema_and_a_default() -> None:
    import json

    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    for name, section in values.items():
        if isinstance(section, dict):
            assert set(section) == set(schema["properties"][name]["properties"])


def test_the_plain_manifests_are_in_step_with_the_chart(helm: Helm) -> None:
    import os

    path = f"{Path(helm.path).parent}:{os.environ['PATH']}"
    command = [sys.executable, str(ROOT / "charts" / "make.py"), "--check"]
    environment = os.environ | {"PATH": path}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_kustomize_base_builds(kubectl: str) -> None:
    command = [kubectl, "kustomize", str(ROOT / "charts" / "manifests")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    objects = list(yaml.safe_load_all(result.stdout))
    assert kinds(objects).count("CustomResourceDefinition") == 2
    assert one(objects, "Deployment")["metadata"]["namespace"] == "penstock-system"
    assert "Helm" not in result.stdout


def test_the_kustomize_example_changes_every_image(kubectl: str) -> None:
    command = [kubectl, "kustomize", str(ROOT / "examples" / "kustomize")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (container,) = one(list(yaml.safe_load_all(result.stdout)), "Deployment")["spec"]["template"]["spec"]["containers"]
    values = [container["image"], *(entry.get("value", "") for entry in container["env"])]
    images = [value for value in values if "penstock/" in value]
    assert len(images) == 4
    assert all(image.startswith("registry.example.com/penstock/") for image in images)


def test_api_keys_make_a_secret_that_the_router_reads(helm: Helm, tmp_path: Path) -> None:
    assert "Secret" not in kinds(helm.template())
    values = tmp_path / "values.yaml"
    key, digest = new_key()
    tenants = {
        "search": {
            "keySha256": [digest, "0" * 64],
            "weight": 2.5,
            "priority": -1,
            "requestsPerMinute": 600,
            "tokensPerMinute": 10_000_000,
            "salt": 'of "sixteen" or more',
        },
        "batch": {"keySha256": ["1" * 64]},
    }
    values.write_text(yaml.safe_dump({"apiKeys": {"tenants": tenants, "namespaces": ["team-a", "team-b"]}}))
    secrets = [found for found in helm.template("--values", str(values)) if found["kind"] == "Secret"]
    assert [found["metadata"]["namespace"] for found in secrets] == ["team-a", "team-b"]
    ring = parse_keys(secrets[0]["stringData"]["keys.toml"], "the Secret")
    assert ring.names == {"search", "batch"}
    assert ring.find(key) == Tenant(
        name="search",
        weight=2.5,
        priority=-1,
        requests_per_minute=600,
        tokens_per_minute=10_000_000,
        salt='of "sixteen" or more',
    )


@pytest.mark.parametrize("wrong", ["a.keySha256={nohash}", "a.weight=1", "a.keySha256={},a.quota=1"])
def test_wrong_api_keys_are_refused(helm: Helm, wrong: str) -> None:
    assert "apiKeys" in helm.refusal(*(f"--set=apiKeys.tenants.{part}" for part in wrong.split(",")))


def test_the_chart_brings_a_redis_that_only_routers_reach(helm: Helm, tmp_path: Path) -> None:
    assert "penstock-redis" not in str(helm.template())
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"redis": {"enabled": True, "namespaces": ["team-a", "team-b"]}}))
    objects = helm.template("--values", str(values))
    found = {each["kind"]: each for each in objects if "redis" in each["metadata"]["name"]}
    secrets = {each["metadata"]["namespace"]: each for each in objects if each["kind"] == "Secret"}
    own = secrets.pop("penstock-system")
    assert list(secrets) == ["team-a", "team-b"]
    url = urlsplit(secrets["team-a"]["stringData"][api.RedisSecret(name="penstock-redis").key])
    service, pod = found["Service"], found["Deployment"]["spec"]["template"]
    assert url.scheme == "redis"
    assert url.hostname == f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert url.port == service["spec"]["ports"][0]["port"]
    (container,) = pod["spec"]["containers"]
    (variable,) = container["env"]
    reference = variable["valueFrom"]["secretKeyRef"]
    assert (container["args"][-2:], reference["name"]) == (
        ["--requirepass", f"$({variable['name']})"],
        own["metadata"]["name"],
    )
    assert own["stringData"][reference["key"]] == url.password
    assert len(url.password or "") == 32
    labels = pod["metadata"]["labels"].items()
    policy = found["NetworkPolicy"]["spec"]
    for selector in (
        service["spec"]["selector"],
        policy["podSelector"]["matchLabels"],
        found["Deployment"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    ((rule,),) = [each["from"] for each in policy["ingress"]]
    assert rule["podSelector"]["matchLabels"].items() <= names.labels("demo", "router").items()
    (admitted,) = rule["namespaceSelector"]["matchExpressions"]
    assert admitted == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a", "team-b"]}
    operators = next(each for each in objects if each["kind"] == "Deployment" and each is not found["Deployment"])
    assert not operators["spec"]["selector"]["matchLabels"].items() <= labels, "it would be taken for an operator"


def test_the_password_of_the_charts_redis_may_be_given(helm: Helm) -> None:
    given = ("--set", "redis.enabled=true", "--set", "redis.password=A-b.9")
    urls = [each["stringData"].get("url", "") for each in helm.template(*given) if each["kind"] == "Secret"]
    assert "redis://:A-b.9@penstock-redis.penstock-system.svc:6379/0" in urls
    assert helm.template(*given) == helm.template(*given)
    assert "password" in helm.refusal("--set", "redis.password=a@b")
