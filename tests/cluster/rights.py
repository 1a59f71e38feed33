"""The rights that the chart grants to the operator, and those it used, by its own count of API calls."""

import re

import yaml

from penstock.operator.kinds import OWNED
from tests.charts.conftest import CHART
from tests.cluster.kube import Kube

Right = tuple[str, str]
"""Verb and resource: ("patch", "apps/deployments")."""

NOT_COUNTED: dict[Right, str] = {
    ("list", "serving.penstock.dev/llmdeployments"): "kopf's own client",
    ("watch", "serving.penstock.dev/llmdeployments"): "kopf's own client",
    ("get", "discovery.k8s.io/endpointslices"): "never used: what routers are granted must be held",
    ("list", "discovery.k8s.io/endpointslices"): "never used: what routers are granted must be held",
    ("watch", "discovery.k8s.io/endpointslices"): "never used: what routers are granted must be held",
    ("create", "coordination.k8s.io/leases"): "only by the first leader ever",
    ("list", "events"): "only while pods run and do not become ready (a slow test of test_traffic)",
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
