"""What the operator has seen of one LLMDeployment: the input of `plan`. Pure data."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from penstock.operator import api, names
from penstock.operator.drift import covers
from penstock.operator.problems import PodState
from penstock.operator.render import Manifest, Revision


class Workload(Struct, frozen=True, gc=False):
    """What a Deployment says of its pods; of one that does not exist, nothing."""

    role: str = ""
    revision: str = ""
    wanted: int = 0
    replicas: int = 0
    ready: int = 0
    is_rolled_out: bool = False
    """Every pod has the template that was applied last and is ready."""
    failure: str = ""
    """Why it cannot create pods (quota, admission)."""


class Seen(Struct, gc=False):
    """One sight of an owned object. Its body is kept as packed JSON: ten thousand objects as dicts would take 30 times
    the memory, and unpacking one takes 20 us."""

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
    workload: Workload | None = None
    """Of a Deployment."""
    _covered: str = ""
    """Hash of the manifest that this sight was found to cover: most looks find what the one before found, and comparing
    took most of their time (0.7 of 1.1 ms for 15 objects). The next sight of the object knows nothing of it."""

    def manifest(self) -> Manifest:
        """Without managedFields."""
        found: Manifest = msgspec.json.decode(zlib.decompress(self.body))
        return found

    def covers(self, wanted: Manifest) -> bool:
        """Whether the object says all that is wanted of it."""
        digest = wanted["metadata"]["annotations"][names.APPLIED]
        if self._covered != digest and covers(self.manifest(), wanted):
            self._covered = digest
        return bool(self._covered == digest)


def seen(manifest: Manifest) -> Seen:
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
        workload=workload_of(manifest) if manifest["kind"] == "Deployment" else None,
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
    drift: tuple[str, ...] | None = None
    """What any of its routers predicts wrongly, by the routers' names for it; None while none has been asked."""

    def get(self, kind: str, name: str) -> Manifest | None:
        """The manifest of one object, or None when it is not there."""
        found = self.objects.get((kind, name))
        return found.manifest() if found is not None else None

    @property
    def workloads(self) -> list[Workload]:
        """Of every Deployment."""
        return [found.workload for found in self.objects.values() if found.workload is not None]

    def of_kind(self, kind: str) -> list[Seen]:
        return [found for (of, _), found in self.objects.items() if of == kind]


def workload_of(manifest: Manifest) -> Workload:
    """Reads a Deployment."""
    status, wanted = manifest.get("status", {}), manifest["spec"].get("replicas", 1)
    replicas, ready = status.get("replicas", 0), status.get("readyReplicas", 0)
    failures = [
        condition.get("message", "")
        for condition in status.get("conditions", ())
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True"
    ]
    is_current = status.get("observedGeneration", 0) >= manifest["metadata"].get("generation", 0)
    labels = manifest["metadata"].get("labels", {})
    return Workload(
        role=labels.get(names.ROLE, ""),
        revision=labels.get(names.REVISION, ""),
        wanted=wanted,
        replicas=replicas,
        ready=ready,
        is_rolled_out=is_current and replicas == ready == status.get("updatedReplicas", 0) == wanted,
        failure=failures[0] if failures else "",
    )


def stored_revision(manifest: Manifest) -> Revision | None:
    """The revision in a ControllerRevision; None when it was written by a version that stored another form."""
    try:
        return msgspec.convert(manifest.get("data"), Revision)
    except msgspec.ValidationError:
        return None
