"""The two CRDs, generated from api.py. `python -m penstock.operator.crds` prints them, `--write` updates the chart."""

import sys
from pathlib import Path
from typing import Any

import yaml

from penstock.operator import api
from penstock.operator.rules import DEPLOYMENT_RULES, RULES
from penstock.operator.schema import Schema, schema_of, without_defaults

CHART_FILE = Path("charts/penstock/files/crds.yaml")
HEADER = "# Made by `python -m penstock.operator.crds --write`: do not edit.\n"


def crds() -> list[dict[str, Any]]:
    """LLMDeployment and LLMPool, ready to be applied."""
    return [llm_deployment(), llm_pool()]


def llm_deployment() -> dict[str, Any]:
    """The CRD of what users write."""
    schema = _root("A large language model, served with prefill and decode in separate pools.", api.Spec, api.Status)
    schema["required"] = ["spec"]
    schema["x-kubernetes-validations"] = [rule.to_schema() for rule in DEPLOYMENT_RULES]
    columns = [
        _column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        _column("Prefill", ".status.prefill.summary"),
        _column("Decode", ".status.decode.summary"),
        _column("Revision", ".status.revision"),
        _column("URL", ".status.url"),
        _column("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
        _column("Age", ".metadata.creationTimestamp", kind="date"),
    ]
    names = {
        "kind": "LLMDeployment",
        "plural": "llmdeployments",
        "singular": "llmdeployment",
        "shortNames": ["llmd"],
        "categories": ["all", "penstock"],
    }
    return _crd(names, schema, columns, {"status": {}})


def llm_pool() -> dict[str, Any]:
    """The CRD of what the operator writes and autoscalers scale."""
    schema = _root(
        "The pods of one role of an LLMDeployment; scale it instead of its Deployments.",
        api.PoolObjectSpec,
        api.PoolObjectStatus,
    )
    columns = [
        _column("Role", ".spec.role"),
        _column("Replicas", ".spec.replicas", kind="integer"),
        _column("Ready", ".status.readyReplicas", kind="integer"),
        _column("Revision", ".status.revision"),
        _column("Age", ".metadata.creationTimestamp", kind="date"),
    ]
    names = {"kind": "LLMPool", "plural": "llmpools", "singular": "llmpool", "categories": ["penstock"]}
    scale = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    return _crd(names, schema, columns, {"status": {}, "scale": scale})


def to_yaml(documents: list[dict[str, Any]]) -> str:
    """The documents as YAML, in one file."""
    return "---\n".join(yaml.safe_dump(document, sort_keys=False, width=110) for document in documents)


def chart_file() -> str:
    """The chart's copy."""
    return HEADER + to_yaml(crds())


def _root(description: str, spec: Any, status: Any) -> Schema:
    return {
        "type": "object",
        "description": description,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": schema_of(spec, RULES),
            "status": without_defaults(schema_of(status, {})),
        },
    }


def _crd(names: dict[str, Any], schema: Schema, columns: list[Schema], subresources: Schema) -> dict[str, Any]:
    version = {
        "name": api.VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns,
        "subresources": subresources,
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{names['plural']}.{api.GROUP}",
            "annotations": {"helm.sh/resource-policy": "keep"},
            "labels": {"app.kubernetes.io/name": "penstock"},
        },
        "spec": {
            "group": api.GROUP,
            "scope": "Namespaced",
            "names": names | {"listKind": names["kind"] + "List"},
            "versions": [version],
        },
    }


def _column(name: str, path: str, *, kind: str = "string") -> Schema:
    return {"name": name, "type": kind, "jsonPath": path}


def main() -> int:
    if "--write" in sys.argv[1:]:
        CHART_FILE.parent.mkdir(parents=True, exist_ok=True)
        CHART_FILE.write_text(chart_file())
        print(f"written: {CHART_FILE}")
    else:
        print(to_yaml(crds()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
