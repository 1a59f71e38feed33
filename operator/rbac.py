"""The operator's rights, as data: the chart's Role is compared with it, and so are the API calls of the tests.

`python -m penstock.operator.rbac` prints the rules, `--write` updates the chart.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from penstock.operator.api import GROUP
from penstock.operator.kinds import LLM_POOL, OWNED

Rule = dict[str, Any]

CHART_FILE = Path("charts/penstock/files/rbac.yaml")
HEADER = "# Made by `python -m penstock.operator.rbac --write`: do not edit.\n"

_OWN = ["get", "list", "watch", "create", "patch", "delete"]


def rules() -> list[Rule]:
    """What the operator needs in every namespace that it looks after."""
    groups: dict[str, list[str]] = {}
    for kind in OWNED:
        if kind == LLM_POOL:  # goes with its LLMDeployment, never before
            continue
        groups.setdefault(kind.group, []).append(kind.plural)
    return [
        _rule(GROUP, ["llmdeployments"], ["get", "list", "watch"]),
        _rule(GROUP, ["llmdeployments/status", f"{LLM_POOL.plural}/status"], ["patch"]),
        _rule(GROUP, [LLM_POOL.plural], [verb for verb in _OWN if verb != "delete"]),
        *(_rule(group, sorted(plurals), _OWN) for group, plurals in sorted(groups.items())),
        _rule("", ["pods"], ["list", "watch"]),
        _rule("", ["pods/log"], ["get"]),  # how far the fetching of a model is
        _rule("", ["secrets"], ["create"]),
        _rule("", ["events"], ["list", "create"]),  # why pods wait, and its own
        # What it grants to routers it must hold itself.
        _rule("discovery.k8s.io", ["endpointslices"], ["get", "list", "watch"]),
    ]


def lease_rules() -> list[Rule]:
    """What it needs in its own namespace: leader election."""
    return [_rule("coordination.k8s.io", ["leases"], ["get", "create", "update"])]


def _rule(group: str, resources: list[str], verbs: list[str]) -> Rule:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def chart_file() -> str:
    """The chart's copy."""
    return HEADER + str(yaml.safe_dump({"rules": rules(), "leaseRules": lease_rules()}, sort_keys=False))


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        CHART_FILE.write_text(chart_file())
        print(f"written: {CHART_FILE}")
    else:
        print(chart_file(), end="")
