"""What a NetworkPolicy admits, by Kubernetes' rules, asked of the objects of a cluster.

Not every network enforces policies (the shared cluster's bridge does not), so what they mean is worked out here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.cluster.kube import Object


@dataclass(frozen=True)
class Peer:
    """A pod that connects, or is connected to."""

    namespace: str
    labels: Mapping[str, str]
    namespace_labels: Mapping[str, str]


def admits(policies: Sequence[Object], target: Peer, source: Peer, port: int) -> bool:
    """Whether `source` may connect to TCP `port` of `target`; `policies` are those of the target's namespace."""
    chosen = [policy for policy in policies if selects(policy["spec"]["podSelector"], target.labels)]
    if not chosen:
        return True
    rules = [rule for policy in chosen for rule in policy["spec"].get("ingress", [])]
    return any(_is_from(rule, target, source) and _is_to(rule, port) for rule in rules)


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches. An empty one matches everything."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for requirement in selector.get("matchExpressions", []):
        assert requirement["operator"] == "In", "the only operator in use"
        if labels.get(requirement["key"]) not in requirement["values"]:
            return False
    return True


def _is_from(rule: Object, target: Peer, source: Peer) -> bool:
    def is_peer(peer: Object) -> bool:
        if "namespaceSelector" in peer:
            is_there = selects(peer["namespaceSelector"], source.namespace_labels)
        else:
            is_there = source.namespace == target.namespace
        return is_there and selects(peer.get("podSelector", {}), source.labels)

    return "from" not in rule or any(is_peer(peer) for peer in rule["from"])


def _is_to(rule: Object, port: int) -> bool:
    return "ports" not in rule or any(found["port"] == port for found in rule["ports"])
