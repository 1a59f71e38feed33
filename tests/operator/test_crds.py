"""The CRDs are what api.py says, and read well."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.operator import api, crds, rbac
from penstock.operator.rules import RULES

ROOT = Path(__file__).parents[2]


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field below `schema` with its path."""
    for name, part in schema.get("properties", {}).items():
        yield f"{path}.{name}", part
        yield from fields(part, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")


def schema_of(crd: dict[str, Any], part: str) -> dict[str, Any]:
    found: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part]
    return found


def test_the_chart_holds_the_generated_crds() -> None:
    assert (ROOT / crds.CHART_FILE).read_text() == crds.chart_file(), "run: python -m penstock.operator.crds --write"


def test_the_chart_holds_the_generated_rights() -> None:
    assert (ROOT / rbac.CHART_FILE).read_text() == rbac.chart_file(), "run: python -m penstock.operator.rbac --write"


@pytest.mark.parametrize("crd", crds.crds(), ids=lambda crd: str(crd["spec"]["names"]["kind"]))
def test_every_field_has_a_description_that_is_a_sentence(crd: dict[str, Any]) -> None:
    for part in ("spec", "status"):
        for path, schema in fields(schema_of(crd, part), part):
            assert schema.get("description", "").rstrip('"').endswith((".", "1024")), path


def test_the_schema_s_defaults_are_the_types_defaults() -> None:
    """What the API server fills in is what the operator would have taken anyway."""
    schema = schema_of(crds.llm_deployment(), "spec")
    given = {"model": {"uri": "file:///models/x"}}
    filled = given | {
        name: part["default"] for name, part in schema["properties"].items() if "default" in part and name not in given
    }
    assert msgspec.convert(filled, api.Spec) == msgspec.convert(given, api.Spec)


def test_a_default_object_is_written_whole() -> None:
    """`default: {}` is refused by the API server when a rule reads a field of it."""
    schema = schema_of(crds.llm_deployment(), "spec")
    assert schema["properties"]["prefill"]["default"]["tensorParallel"] == 1
    assert schema["properties"]["prefill"]["default"]["resources"] == {"requests": {}, "limits": {}}


def test_the_model_is_all_that_is_required() -> None:
    schema = schema_of(crds.llm_deployment(), "spec")
    assert schema["required"] == ["model"]
    assert schema["properties"]["model"]["required"] == ["uri"]


def test_a_status_has_no_defaults() -> None:
    for crd in crds.crds():
        assert all("default" not in schema for _, schema in fields(schema_of(crd, "status"), "status"))


def test_every_rule_has_a_sentence() -> None:
    for rules in RULES.values():
        for rule in rules:
            assert len(rule.message or rule.message_expression) > 15, rule
            assert not (rule.message and rule.message_expression), rule


def test_pools_can_be_scaled() -> None:
    version = crds.llm_pool()["spec"]["versions"][0]
    assert version["subresources"]["scale"] == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }


def test_no_default_holds_a_null() -> None:
    """The API server refuses the whole CRD."""

    def defaults(schema: Any) -> list[Any]:
        if isinstance(schema, list):
            return [found for part in schema for found in defaults(part)]
        if not isinstance(schema, dict):
            return []
        return [schema.get("default", ""), *(found for part in schema.values() for found in defaults(part))]

    assert "null" not in json.dumps(defaults(crds.crds()))
