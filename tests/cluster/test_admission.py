"""What a user sees before anything runs: refusals with a sentence, kubectl's tables and explanations."""

import json
import re
from typing import Any

import pytest

from penstock.operator.api import PoolObjectSpec
from penstock.operator.rules import DEPLOYMENT_RULES, RULES, Rule
from tests.cluster.kube import CommandFailed, Kube, run

MODEL = {"uri": "file:///models/x"}
HUB = {"uri": "hf://org/name"}
LIMITS = {"gpus": 0, "resources": {"limits": {"memory": "1Gi"}}}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("demo", {"model": MODEL | {"revision": "main"}}, "revision is for a model of hf:// whose uri names none"),
    ("demo", {"model": MODEL | {"tokenSecret": {"name": "hub"}}}, "tokenSecret is for models of hf://"),
    ("demo", {"model": MODEL | {"cache": {"claim": "x"}}}, "cache is for models of hf://, which are fetched"),
    ("demo", {"model": HUB | {"cache": {}}}, "cache needs exactly one of claim and hostPath"),
    ("demo", {"decode": {"scaling": {"minReplicas": 3, "maxReplicas": 2}}}, "minReplicas 3 is more than maxReplicas 2"),
    ("demo", {"decode": {"replicas": 5, "scaling": {"maxReplicas": 4}}}, "replicas 5 is outside scaling, 1 to 4"),
    ("demo", {"prefill": {"gpus": 4, "tensorParallel": 3}}, "tensorParallel 3 does not divide gpus 4"),
    ("demo", {"prefill": {"gpus": 2, "tensorParallel": 2}}, "tensorParallel 2: workers of this version run a model on"),
    ("demo", {"prefill": {"gpus": 2}}, "gpus 2: workers of this version use one GPU; set gpus to 1 and more replicas"),
    ("demo", {"kvCache": {"size": "1Gi", "memoryShare": 50}}, "size and memoryShare say the same thing"),
    ("demo", {"kvCache": {"memoryShare": 50}}, "memoryShare is for workers without GPUs; set kvCache.size instead"),
    (
        "demo",
        {"kvCache": {"memoryShare": 50}, "prefill": LIMITS, "decode": {"gpus": 0}},
        "memoryShare is a part of resources.limits.memory: set that for prefill and decode",
    ),
    ("demo", {"task": "embed"}, "task embed is foreseen, but workers of this version serve only generate"),
    ("demo", {"engine": {"--max-step-tokens": "8"}}, "engine: flags are written without dashes in front"),
    ("demo", {"engine": {"device": "cuda"}}, "engine: model, served-model-name, host, port, transfer-host, device"),
    ("n" * 41, {}, "the name has 41 characters, and names derived from it leave room for 40"),
    ("demo.v2", {}, "the name also names Services, so it may contain only lower-case letters, digits and '-' (no dot)"),
    ("demo", {"model": {"uri": "s3://bucket/x"}}, "spec.model.uri"),
    ("demo", {"router": {"resources": {"requests": {"memory": "abc"}}}}, "spec.router.resources.requests.memory"),
    ("demo", {"prefil": {}}, 'unknown field "spec.prefil"'),
]
"""Name, changes of a minimal spec, and a part of what kubectl says."""


def manifest(name: str, spec: dict[str, Any]) -> str:
    body = {"apiVersion": "serving.penstock.dev/v1alpha1", "kind": "LLMDeployment", "metadata": {"name": name}}
    return json.dumps(body | {"spec": {"model": MODEL} | spec})


def check(kube: Kube, text: str) -> str:
    return kube.run("apply", "--dry-run=server", "--filename", "-", text=text)


def test_the_minimum_is_a_model(namespace: Kube) -> None:
    assert "created" in check(namespace, manifest("demo", {}))
    assert "created" in check(namespace, manifest("n" * 40, {}))


def test_what_cannot_work_is_refused_with_a_sentence(namespace: Kube) -> None:
    said = ""
    for name, spec, sentence in REFUSED:
        with pytest.raises(CommandFailed) as refused:
            check(namespace, manifest(name, spec))
        assert sentence in str(refused.value)
        said += str(refused.value)
    for rule in (*DEPLOYMENT_RULES, *(rule for kind in RULES if kind is not PoolObjectSpec for rule in RULES[kind])):
        assert re.search(sentence_of(rule), said), f"no case for: {rule.expression}"


def sentence_of(rule: Rule) -> str:
    """The rule's message as a pattern."""
    said = rule.message or rule.message_expression.split("'")[1]
    return re.sub("%[ds]", r"\\S+", re.escape(said))


def test_what_makes_a_pool_what_it_is_cannot_be_changed(namespace: Kube) -> None:
    spec = {"deployment": "demo", "role": "decode"}
    pool = {"apiVersion": "serving.penstock.dev/v1alpha1", "kind": "LLMPool", "metadata": {"name": "orphan"}}
    namespace.apply(json.dumps(pool | {"spec": spec}))
    for field, value in (("role", "prefill"), ("deployment", "other")):
        change = json.dumps({"spec": {field: value}})
        with pytest.raises(CommandFailed, match=f"{field} cannot be changed"):
            namespace.run("patch", "llmpool", "orphan", "--type=merge", "--patch", change)
    namespace.run("delete", "llmpool", "orphan")


def test_kubectl_explains_every_field_and_shows_what_matters(namespace: Kube) -> None:
    said = namespace.run("explain", "llmd.spec", "--recursive")
    for field in ("prefill", "decode", "router", "kvCache", "kvTransfer", "engine", "tensorParallel", "template"):
        assert field in said
    for field in ("prefill.template", "decode.scaling", "kvCache.memoryShare", "model.tokenSecret"):
        description = namespace.run("explain", f"llmd.spec.{field}").partition("DESCRIPTION:")[2]
        assert re.search(r"[A-Z][^.]{10,}\.", description), field
    namespace.apply(manifest("idle", {role: {"replicas": 0} for role in ("prefill", "decode", "router")}))
    header = namespace.run("get", "llmd", "idle").splitlines()[0].split()
    assert header == ["NAME", "READY", "PREFILL", "DECODE", "REVISION", "URL", "REASON", "AGE"]
    assert "llmdeployment.serving.penstock.dev/idle" in namespace.run("get", "all", "--output", "name")
    assert "llmdeployments" in run("kubectl", "api-resources", "--categories=penstock", "--output=name")
