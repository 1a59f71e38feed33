"""`penstock render FILE`: what the operator would create, without a cluster."""

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from penstock.errors import ConfigError
from penstock.operator import api, crds
from penstock.operator.actions import Create, CreateSecret, Seed
from penstock.operator.commands.config import RenderConfig
from penstock.operator.config import OperatorConfig
from penstock.operator.controller import read_subject
from penstock.operator.observed import Observed
from penstock.operator.plan import plan
from penstock.operator.render import Manifest, secret
from penstock.operator.store import read_deployment


def run_render(config: RenderConfig, operator: OperatorConfig) -> int:
    """Prints the manifests. Raises ConfigError with what is wrong in the file, and where."""
    text = sys.stdin.read() if config.file == "-" else _read(Path(config.file))
    manifests = [manifest for body in deployments_in(text, config) for manifest in manifests_of(body, operator)]
    print(crds.to_yaml(manifests), end="")
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def deployments_in(text: str, config: RenderConfig) -> Iterator[Manifest]:
    """The LLMDeployments of a YAML file; other documents are passed over. Raises ConfigError."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if isinstance(document, dict)]
    except yaml.YAMLError as error:
        raise ConfigError(f"{config.file} is not YAML: {error}") from error
    found = [document for document in documents if document.get("kind") == "LLMDeployment"]
    if not found:
        raise ConfigError(f"{config.file} holds no LLMDeployment")
    for body in found:
        if body.get("apiVersion") != api.API_VERSION:
            raise ConfigError(f"{config.file}: apiVersion is {body.get('apiVersion')!r}, not {api.API_VERSION!r}")
        metadata = {"namespace": config.namespace, "name": ""} | (body.get("metadata") or {})
        yield body | {"metadata": metadata}


def manifests_of(body: Manifest, operator: OperatorConfig) -> list[Manifest]:
    """All that the operator would create until the deployment serves, without owners, which have no uid here. Raises
    ConfigError."""
    name = body["metadata"]["name"]
    schema = crds.llm_deployment()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for problem in unknown_fields(body.get("spec"), schema["properties"]["spec"], "spec"):
        raise ConfigError(f"{name}: {problem}")
    try:
        msgspec.convert(body.get("spec"), api.Spec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {str(error).replace('$', 'spec')}") from error
    subject = read_subject(read_deployment(body), operator)
    if subject.target is None:
        raise ConfigError(f"{name}: {subject.spec_error}")
    serving = Observed(status=api.Status(revision=subject.target.hash))  # else what comes last would be left out
    found = []
    for action in plan(subject, serving, "").actions:
        if isinstance(action, Create | Seed):
            found.append(action.manifest)
        elif isinstance(action, CreateSecret):
            found.append(secret(subject.parent, "made by the operator, at random"))
    for manifest in found:
        del manifest["metadata"]["ownerReferences"]
    return found


def unknown_fields(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    """A sentence for every field that the schema does not know."""
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from unknown_fields(item, schema["items"], f"{path}[{index}]")
    if not isinstance(value, dict) or "properties" not in schema:
        return
    for name, part in value.items():
        if name in schema["properties"]:
            yield from unknown_fields(part, schema["properties"][name], f"{path}.{name}")
        else:
            close = difflib.get_close_matches(name, schema["properties"], n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(schema['properties'])}"
            yield f"there is no field {path}.{name}; {hint}"
