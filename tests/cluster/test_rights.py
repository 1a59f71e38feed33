"""The operator has the rights it uses, and no other: its own count of API calls against the chart's Role."""

import json
import re

import yaml

from penstock.operator.kinds import OWNED
from tests.charts.conftest import CHART
from tests.cluster.kube import Kube, eventually
from tests.cluster.test_end_to_end import small

Right = tuple[str, str]
"""Verb and resource: ("patch", "apps/deployments")."""

NOT_COUNTED: dict[Right, str] = {
    ("list", "serving.penstock.dev/llmdeployments"): "kopf's own client",
    ("watch", "serving.penstock.dev/llmdeployments"): "kopf's own client",
    ("get", "discovery.k8s.io/endpointslices"): "never used: what routers are granted must be held",
    ("list", "discovery.k8s.io/endpointslices"): "never used: what routers are granted must be held",
    ("watch", "discovery.k8s.io/endpointslices"): "never used: what routers are granted must be held",
    ("create", "coordination.k8s.io/leases"): "only by the first leader ever",
    ("get", "pods/log"): "only while a model of a hub is fetched (test_sources)",
    **{("get", f"{kind.group}/{kind.plural}".lstrip("/")): "a look after a conflict, of any kind" for kind in OWNED},
    **{
        ("delete", resource): "only if it is left over, by an operator that named things otherwise"
        for resource in (
            "configmaps",
            "serviceaccounts",
            "networking.k8s.io/networkpolicies",
            "policy/poddisruptionbudgets",
            "rbac.authorization.k8s.io/roles",
            "rbac.authorization.k8s.io/rolebindings",
        )
    },
}
_CALL = re.compile(r'penstock_operator_api_calls_total\{resource="([^"]*)",status="(\d+)",verb="([^"]*)"\}')


def granted() -> set[Right]:
    rights = yaml.safe_load((CHART / "files" / "rbac.yaml").read_text())
    return {
        (verb, f"{group}/{resource}".lstrip("/"))
        for rule in (*rights["rules"], *rights["leaseRules"])
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(system: Kube) -> dict[Right, set[str]]:
    """Every right that was asked for, with the statuses that were answered."""
    found: dict[Right, set[str]] = {}
    for pod in system.items("pods", "app.kubernetes.io/name=penstock-operator"):
        for name in system.metrics(pod["metadata"]["name"], 8080):
            if call := _CALL.fullmatch(name):
                found.setdefault((call[3], call[1]), set()).add(call[2])
                if call[3] == "patch" and call[2] == "201":  # server-side apply of something new takes both rights
                    found.setdefault(("create", call[1]), set()).add("201")
    return found


def is_settled(kube: Kube, name: str) -> bool:
    """Whether the last spec is all there is: one revision, whole."""
    found = kube.get("llmd", name)
    progressing = kube.condition(name, "Progressing")
    is_current = progressing.get("observedGeneration") == found["metadata"]["generation"]
    revisions = kube.items("controllerrevisions", f"serving.penstock.dev/deployment={name}")
    return is_current and progressing["status"] == "False" and len(revisions) == 1


def test_the_role_is_what_a_life_of_an_llm_deployment_needs(penstock: Kube, namespace: Kube) -> None:
    namespace.apply(small("life"))
    namespace.wait_ready("life")
    namespace.run("scale", "llmpool", "life-decode", "--replicas=2")
    change = {"engine": {"max-sequences": "32"}, "prefill": {"replicas": 2}}
    namespace.run("patch", "llmd", "life", "--type=merge", "--patch", json.dumps({"spec": change}))
    eventually(lambda: is_settled(namespace, "life"), "the second revision serves alone", within_s=120)
    for kind in ("service", "configmap", "role", "rolebinding", "serviceaccount", "pdb", "networkpolicy"):
        namespace.run("delete", kind, "--selector", "serving.penstock.dev/deployment=life", "--wait=false")
    eventually(lambda: namespace.items("networkpolicies"), "what was deleted is back")

    calls = used(penstock)
    forbidden = {right for right, statuses in calls.items() if "403" in statuses}
    assert forbidden == set()
    assert set(calls) <= granted(), "a right that the cluster gave but the chart does not"
    unused = granted() - set(calls) - set(NOT_COUNTED)
    assert unused == set(), "rights that nothing needed"
