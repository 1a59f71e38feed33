"""What the operator has seen of one LLMDeployment: the input of `plan`. Pure data."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from penstock.operator import api, names
from penstock.operator.problems import PodState
from penstock.operator.render import Revision


class Seen(Struct, frozen=True):
    """One owned object. Its body is kept as packed JSON: ten thousand objects as dicts would take 30 times the memory,
    and unpacking one takes 20 us."""

    kind: str
    name: str
    namespace: str
    uid: str
    resource_version: int
    deployment: str
    """The LLMDeployment that its labels name."""
    owner_uid: str
    is_deleting: bool
    body: bytes

    def manifest(self) -> dict[str, Any]:
        """Without managedFields."""
        found: dict[str, Any] = msgspec.json.decode(zlib.decompress(self.body))
        return found


def seen(manifest: dict[str, Any]) -> Seen:
    """Takes what is needed from an object as the API server sends it. Changes `manifest`."""
    metadata = manifest["metadata"]
    metadata.pop("managedFields", None)
    owners = [owner["uid"] for owner in metadata.get("ownerReferences", ()) if owner.get("controller")]
    return Seen(
        kind=manifest["kind"],
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        resource_version=int(metadata["resourceVersion"]),
        deployment=metadata.get("labels", {}).get(names.DEPLOYMENT, ""),
        owner_uid=owners[0] if owners else "",
        is_deleting="deletionTimestamp" in metadata,
        body=zlib.compress(msgspec.json.encode(manifest), 1),
    )


class Verification(Struct, frozen=True):
    """What the router said of the transfers between its workers."""

    is_verified: bool | None
    reason: str
    message: str


@dataclass(frozen=True)
class Observed:
    """All of it, by kind and name."""

    objects: Mapping[tuple[str, str], Seen] = field(default_factory=dict)
    pods: tuple[PodState, ...] = ()
    status: api.Status = field(default_factory=api.Status)
    verification: Verification | None = None
    refusals: tuple[str, ...] = ()
    """What the API server said when it refused the last changes."""
    fetching: str = ""
    """How far the fetching of the model is, while pods do so."""

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """The manifest of one object, or None when it is not there."""
        found = self.objects.get((kind, name))
        return found.manifest() if found is not None else None

    def of_kind(self, kind: str) -> list[Seen]:
        return [found for (of, _), found in self.objects.items() if of == kind]


class WorkloadStatus(Struct, frozen=True):
    """A Deployment's own account of its pods."""

    replicas: int = 0
    ready: int = 0
    is_rolled_out: bool = False
    """Every pod has the template that was applied last and is ready."""
    failure: str = ""
    """Why it cannot create pods (quota, admission)."""


def workload_status(manifest: dict[str, Any] | None) -> WorkloadStatus:
    """Reads a Deployment; one that does not exist has no pods."""
    if manifest is None:
        return WorkloadStatus()
    status, wanted = manifest.get("status", {}), manifest["spec"].get("replicas", 1)
    replicas, ready = status.get("replicas", 0), status.get("readyReplicas", 0)
    failures = [
        condition.get("message", "")
        for condition in status.get("conditions", ())
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True"
    ]
    is_current = status.get("observedGeneration", 0) >= manifest["metadata"].get("generation", 0)
    is_rolled_out = is_current and replicas == ready == status.get("updatedReplicas", 0) == wanted
    return WorkloadStatus(replicas, ready, is_rolled_out, failures[0] if failures else "")


def stored_revision(manifest: dict[str, Any]) -> Revision | None:
    """The revision in a ControllerRevision; None when it was written by a version that stored another form."""
    try:
        return msgspec.convert(manifest.get("data"), Revision)
    except msgspec.ValidationError:
        return None
