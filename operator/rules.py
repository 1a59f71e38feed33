"""Rules of the API that concern more than one field, in CEL, each with the sentence that a user reads.

The API server checks them, so that what cannot work is refused at `kubectl apply`. Strings that rules read must have a
max_length in api.py (the API server bounds the rules' cost by it).
"""

from dataclasses import dataclass

from msgspec import Struct

from penstock.operator import api

MAX_NAME = 40
"""Of an LLMDeployment: its pods are called NAME-prefill-REVISION-HASH-HASH, which must fit 63 characters."""


@dataclass(frozen=True)
class Rule:
    """`expression` must hold of `self`; else the sentence `message`, or the one that `message_expression` makes."""

    expression: str
    message: str = ""
    message_expression: str = ""
    field_path: str = ""

    def to_schema(self) -> dict[str, str]:
        """As in x-kubernetes-validations."""
        parts = {
            "rule": self.expression,
            "message": self.message,
            "messageExpression": self.message_expression,
            "fieldPath": self.field_path,
        }
        return {key: value for key, value in parts.items() if value}


RULES: dict[type[Struct], tuple[Rule, ...]] = {
    api.Model: (
        Rule(
            "self.revision == '' || (self.uri.startsWith('hf://') && !self.uri.contains('@'))",
            "revision is for a model of hf:// whose uri names none",
            field_path=".revision",
        ),
        Rule(
            "!has(self.tokenSecret) || self.uri.startsWith('hf://')",
            "tokenSecret is for models of hf://",
            field_path=".tokenSecret",
        ),
        Rule(
            "!has(self.cache) || self.uri.startsWith('hf://')",
            "cache is for models of hf://, which are fetched",
            field_path=".cache",
        ),
    ),
    api.Cache: (
        Rule(
            "(self.claim == '') != (self.hostPath == '')",
            "cache needs exactly one of claim and hostPath",
        ),
    ),
    api.Scaling: (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            message_expression="'minReplicas %d is more than maxReplicas %d'"
            ".format([self.minReplicas, self.maxReplicas])",
            field_path=".minReplicas",
        ),
    ),
    api.Pool: (
        Rule(
            "self.gpus == 0 || self.gpus % self.tensorParallel == 0",
            message_expression="'tensorParallel %d does not divide gpus %d'.format([self.tensorParallel, self.gpus])",
            field_path=".tensorParallel",
        ),
        Rule(
            "self.tensorParallel == 1",
            message_expression="'tensorParallel %d: workers of this version run a model on one GPU; set it to 1'"
            ".format([self.tensorParallel])",
            field_path=".tensorParallel",
        ),
        Rule(
            "self.gpus <= 1",
            message_expression="'gpus %d: workers of this version use one GPU; set gpus to 1 and more replicas'"
            ".format([self.gpus])",
            field_path=".gpus",
        ),
        Rule(
            "!has(self.scaling) || (self.replicas >= self.scaling.minReplicas"
            " && self.replicas <= self.scaling.maxReplicas)",
            message_expression="'replicas %d is outside scaling, %d to %d'"
            ".format([self.replicas, self.scaling.minReplicas, self.scaling.maxReplicas])",
            field_path=".replicas",
        ),
    ),
    api.KVCache: (
        Rule(
            "!has(self.memoryShare) || self.size == ''",
            "size and memoryShare say the same thing: set one of them",
            field_path=".memoryShare",
        ),
    ),
    api.Spec: (
        Rule(
            "self.task == 'generate'",
            message_expression="'task %s is foreseen, but workers of this version serve only generate'"
            ".format([self.task])",
            field_path=".task",
        ),
        Rule(
            "!has(self.kvCache.memoryShare) || (self.prefill.gpus == 0 && self.decode.gpus == 0)",
            "memoryShare is for workers without GPUs; set kvCache.size instead",
            field_path=".kvCache.memoryShare",
        ),
        Rule(
            "!has(self.kvCache.memoryShare) || ('memory' in self.prefill.resources.limits"
            " && 'memory' in self.decode.resources.limits)",
            "memoryShare is a part of resources.limits.memory: set that for prefill and decode",
            field_path=".kvCache.memoryShare",
        ),
        Rule(
            "self.engine.all(name, name.matches('^[a-z][a-z0-9-]*$'))",
            'engine: flags are written without dashes in front, for example max-step-tokens: "1024"',
            field_path=".engine",
        ),
        Rule(
            "!self.engine.exists(name, name in ['model', 'served-model-name', 'host', 'port', 'transfer-host',"
            " 'device', 'dtype', 'block-size', 'kv-bytes', 'transport', 'secret'])",
            "engine: model, served-model-name, host, port, transfer-host, device, dtype, block-size, kv-bytes,"
            " transport and secret are derived from the other fields",
            field_path=".engine",
        ),
    ),
    api.PoolObjectSpec: (
        Rule("self.deployment == oldSelf.deployment", "deployment cannot be changed", field_path=".deployment"),
        Rule("self.role == oldSelf.role", "role cannot be changed", field_path=".role"),
    ),
}

DEPLOYMENT_RULES = (
    Rule(
        f"self.metadata.name.size() <= {MAX_NAME}",
        message_expression=f"'the name has %d characters, and names derived from it leave room for {MAX_NAME}'"
        ".format([self.metadata.name.size()])",
    ),
    Rule(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "the name also names Services, so it may contain only lower-case letters, digits and '-' (no dot) and must"
        " start with a letter",
    ),
)
