"""An object is written to only when it no longer says what was applied; and overrides merge by name."""

from typing import Any

import pytest

from penstock.errors import ConfigError
from penstock.operator.drift import covers
from penstock.operator.merge import merge


@pytest.mark.parametrize(
    ("observed", "wanted"),
    [
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "1000m"}}),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "1024Mi"}}),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": 2**30}}),
        ({"requests": {"cpu": "50m"}}, {"requests": {"cpu": ".05"}}),
        ({"requests": {"memory": "1k"}}, {"requests": {"memory": "1e3"}}),
        ({"emptyDir": {"sizeLimit": "5E"}}, {"emptyDir": {"sizeLimit": "5000P"}}),
        ({}, {"env": [], "value": "", "annotations": {}, "flag": False}),
        ([{"name": "x", "value": "1", "extra": 1}, {"name": "y"}], [{"name": "y"}, {"name": "x", "value": "1"}]),
        ([{"port": 80, "nodePort": 31000}], [{"port": 80}]),
        ({"selector": {"app": "x"}, "labels": {"a": "b"}}, {"selector": {"app": "x"}}),
        ({"subjects": [{"name": "x", "namespace": ""}]}, {"subjects": [{"name": "x"}]}),
        ("x", "x"),
    ],
)
def test_no_drift(observed: Any, wanted: Any) -> None:
    assert covers(observed, wanted)


@pytest.mark.parametrize(
    ("observed", "wanted"),
    [
        ({"a": 1}, {"a": 2}),
        ({}, {"a": 1}),
        ({"limits": {"cpu": "2"}}, {"limits": {"cpu": "1000m"}}),
        ({"limits": {"memory": "1G"}}, {"limits": {"memory": "1Gi"}}),
        ({"limits": {"memory": "12e3456789"}}, {"limits": {"memory": "34e1234567"}}),
        ({"revision": "1e3"}, {"revision": "1k"}),
        (["a"], ["a", "b"]),
        (["a", "b"], ["a"]),
        ([{"name": "x", "value": "2"}], [{"name": "x", "value": "1"}]),
        ([{"name": "x"}], []),
        ({"selector": {"app": "x", "zone": "y"}}, {"selector": {"app": "x"}}),
        ({"subjects": [{"name": "x"}, {"name": "intruder"}]}, {"subjects": [{"name": "x"}]}),
        ({"ingress": [{"ports": [{"port": 1}, {"port": 2}]}]}, {"ingress": [{"ports": [{"port": 1}]}]}),
        ({"ingress": [{"from": [], "ports": [1]}, {}]}, {"ingress": [{"ports": [1]}]}),
        (None, [1]),
        ("x", {"a": 1}),
    ],
)
def test_drift(observed: Any, wanted: Any) -> None:
    assert not covers(observed, wanted)


def test_overrides_merge_by_name() -> None:
    base = {
        "containers": [{"name": "worker", "env": [{"name": "A", "value": "1"}], "image": "i"}],
        "volumes": [{"name": "tmp"}],
    }
    override = {
        "containers": [
            {"name": "worker", "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}]},
            {"name": "sidecar"},
        ],
        "priorityClassName": "high",
    }
    assert merge(base, override) == {
        "containers": [
            {"name": "worker", "env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}], "image": "i"},
            {"name": "sidecar"},
        ],
        "volumes": [{"name": "tmp"}],
        "priorityClassName": "high",
    }


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ({"metadata": "x"}, "spec.prefill.template.metadata"),
        ({"metadata": {"labels": ["x"]}}, "spec.prefill.template.metadata.labels"),
        ({"spec": {"containers": {"name": "worker"}}}, "spec.prefill.template.spec.containers"),
        (
            {"spec": {"containers": [{"name": "worker", "env": "x"}]}},
            "spec.prefill.template.spec.containers[worker].env",
        ),
    ],
)
def test_an_override_of_another_kind_is_named(override: Any, path: str) -> None:
    base = {"metadata": {"labels": {}}, "spec": {"containers": [{"name": "worker", "env": []}]}}
    with pytest.raises(ConfigError) as raised:
        merge(base, override, "spec.prefill.template")
    assert str(raised.value).startswith(f"{path} is ")


def test_null_in_an_override_removes() -> None:
    assert merge({"a": 1, "b": 2}, {"a": None}) == {"b": 2}


def test_lists_without_names_are_replaced() -> None:
    assert merge({"args": ["--a"]}, {"args": ["--b"]}) == {"args": ["--b"]}
