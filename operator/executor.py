"""Does what a plan says: server-side apply under one field manager, deletes and creates with preconditions.

Everything it does holds if it is done twice, and if the process dies after any request. What the API server answers
goes to the store at once, so that the next plan does not have to wait for a watch.
"""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from penstock.operator import api, names, render
from penstock.operator.actions import (
    Action,
    Apply,
    Create,
    CreateSecret,
    Delete,
    Rescale,
    Seed,
    WritePoolStatus,
    WriteStatus,
)
from penstock.operator.client import ApiError, Client
from penstock.operator.events import transitions
from penstock.operator.kinds import BY_NAME, EVENT, LLM_DEPLOYMENT, LLM_POOL, SECRET
from penstock.operator.metrics import Metrics
from penstock.operator.render import Manifest, Parent
from penstock.operator.store import Store


class ParentGone(Exception):
    """The LLMDeployment was deleted, or is another one of the same name by now: nothing may be created for it."""


@dataclass(frozen=True)
class Outcome:
    """What became of a plan's actions."""

    refusals: tuple[str, ...]
    """What the API server refused for good, as sentences."""
    failure: ApiError | None
    """The first of those that will pass (429, 5xx): they are to be tried again."""


class Executor:
    """Shared by all LLMDeployments."""

    def __init__(self, client: Client, store: Store, metrics: Metrics) -> None:
        self._client = client
        self._store = store
        self._metrics = metrics

    async def run(self, parent: Parent, actions: Iterable[Action], now: str) -> Outcome:
        """Does all of `actions`: one that is refused, or fails, does not keep the others from being done. Raises
        ParentGone, and ApiUnavailable when there is no answer at all."""
        is_parent_there = False
        refusals: list[str] = []
        failure: ApiError | None = None
        for action in actions:
            try:
                if isinstance(action, Create | Seed | CreateSecret) and not is_parent_there:
                    await self._require(parent)
                    is_parent_there = True
                await self._do(parent, action, now)
                self._count(action)
            except ApiError as error:
                try:
                    refusals += await self._refused(parent, action, error, now)
                except ApiError as again:
                    failure = failure or again
        return Outcome(tuple(refusals), failure)

    async def _do(self, parent: Parent, action: Action, now: str) -> None:
        match action:
            case Create(manifest):
                # With a version that no object has, the API server refuses to touch one that is there already.
                metadata = manifest["metadata"] | {"resourceVersion": "1"}
                await self._apply(manifest | {"metadata": metadata}, force=False)
            case Apply(manifest, uid):
                # With a uid the API server refuses to make the object anew if it was deleted meanwhile.
                metadata = manifest["metadata"] | {"uid": uid}
                await self._apply(manifest | {"metadata": metadata}, force=True)
            case Seed(manifest):
                path = LLM_POOL.path(parent.namespace)
                self._store.put(await self._client.create(path, manifest, manager=names.SEED_MANAGER))
            case Rescale(name, uid, replicas):
                change = {"metadata": {"uid": uid}, "spec": {"replicas": replicas, "declaredReplicas": replicas}}
                path = LLM_POOL.path(parent.namespace, name)
                self._store.put(await self._client.merge(path, change, manager=names.SEED_MANAGER))
            case CreateSecret():
                manifest = render.secret(parent, secrets.token_hex(32))
                await self._client.create(SECRET.path(parent.namespace), manifest, manager=names.FIELD_MANAGER)
            case Delete(kind, name, uid):
                await self._client.delete(BY_NAME[kind].path(parent.namespace, name), uid)
            case WritePoolStatus(name, uid, status):
                body = _status_of("LLMPool", parent.namespace, name, uid, status)
                path = LLM_POOL.path(parent.namespace, name, "status")
                self._store.put(await self._client.apply(path, body, manager=names.FIELD_MANAGER, force=True))
            case WriteStatus(status):
                await self._write_status(parent, status, now)

    async def _apply(self, manifest: Manifest, *, force: bool) -> None:
        metadata = manifest["metadata"]
        path = BY_NAME[manifest["kind"]].path(metadata["namespace"], metadata["name"])
        self._store.put(await self._client.apply(path, manifest, manager=names.FIELD_MANAGER, force=force))

    async def _write_status(self, parent: Parent, status: api.Status, now: str) -> None:
        old = self._store.observe((parent.namespace, parent.name)).status
        body = _status_of("LLMDeployment", parent.namespace, parent.name, parent.uid, status)
        path = LLM_DEPLOYMENT.path(parent.namespace, parent.name, "status")
        answer = await self._client.apply(path, body, manager=names.FIELD_MANAGER, force=True)
        self._store.put_deployment(answer)
        for event in transitions(parent, old.conditions, status.conditions, now):
            await self._client.create(EVENT.path(parent.namespace), event, manager=names.FIELD_MANAGER)

    async def _require(self, parent: Parent) -> None:
        """Raises ParentGone unless the very LLMDeployment still exists: what was seen of it may be old."""
        try:
            found = await self._client.get(LLM_DEPLOYMENT.path(parent.namespace, parent.name))
        except ApiError as error:
            if error.status == 404:
                raise ParentGone(parent.name) from error
            raise
        if found["metadata"]["uid"] != parent.uid or "deletionTimestamp" in found["metadata"]:
            raise ParentGone(parent.name)

    async def _refused(self, parent: Parent, action: Action, error: ApiError, now: str) -> list[str]:
        """What a refusal means: nothing when the object merely is not what the store says, which is put right here.
        Raises ApiError for what will pass."""
        if error.status in (401, 429) or error.status >= 500:
            raise error
        match action:
            case CreateSecret() if error.status == 409:
                return []
            case WriteStatus() if error.status in (404, 409):
                raise ParentGone(parent.name) from error
            case Create(manifest) | Seed(manifest) if error.status == 409:
                return await self._taken(parent, manifest, now)
            case Apply(manifest, _) if error.status in (404, 409):
                metadata = manifest["metadata"]
                await self._look(manifest["kind"], metadata["namespace"], metadata["name"])
                return []
            case Delete(kind, name, _) if error.status in (404, 409):
                await self._look(kind, parent.namespace, name)
                return []
            case Rescale(name, _, _) | WritePoolStatus(name, _, _) if error.status in (404, 409):
                await self._look("LLMPool", parent.namespace, name)
                return []
            case Create(manifest) | Apply(manifest, _) if manifest["kind"] == "Deployment":
                return [_refused_pods(manifest, error)]
        return [f"the API server refuses a change: {error}"]

    async def _taken(self, parent: Parent, manifest: Manifest, now: str) -> list[str]:
        """What to do about an object that is there although nobody watches it: it is somebody else's, or has lost its
        labels. Whose it is its owner says."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        found = await self._look(kind, metadata["namespace"], metadata["name"])
        if found is None:
            return []
        labels = found["metadata"].get("labels", {})
        if any(owner["uid"] == parent.uid for owner in found["metadata"].get("ownerReferences", ())):
            if any(labels.get(name) != value for name, value in metadata["labels"].items()):
                await self._do(parent, Apply(_without_replicas(manifest), found["metadata"]["uid"]), now)
            return []
        if labels.get(names.MANAGED_BY) == "penstock":  # of an earlier LLMDeployment: the next plan sees it
            return []
        return [
            f"{kind} {metadata['name']} exists and is not Penstock's: delete it, or give the LLMDeployment another name"
        ]

    async def _look(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Brings the store up to date about one object."""
        try:
            found: Manifest = await self._client.get(BY_NAME[kind].path(namespace, name))
        except ApiError as error:
            if error.status != 404:
                raise
            self._store.drop(kind, namespace, name)
            return None
        if found["metadata"].get("labels", {}).get(names.MANAGED_BY) == "penstock":
            self._store.put(found.copy())
        return found

    def _count(self, action: Action) -> None:
        manifest = getattr(action, "manifest", None)
        kind = manifest["kind"] if manifest else getattr(action, "kind", "")
        self._metrics.actions.labels(type(action).__name__, kind).inc()


def _without_replicas(manifest: Manifest) -> Manifest:
    """An LLMPool's replicas belong to whoever scales; other manifests are as they were."""
    if manifest["kind"] != "LLMPool":
        return manifest
    spec = {key: value for key, value in manifest["spec"].items() if key not in ("replicas", "declaredReplicas")}
    return manifest | {"spec": spec}


def _refused_pods(deployment: Manifest, error: ApiError) -> str:
    """The refusal of a pod template, with the path as the user wrote it: much of it is unchecked until here."""
    said = str(error)
    field = re.search(r"\bspec\.(template\..+)", said)
    reason = field[1] if field else said.rpartition("Kind=Deployment: ")[2]
    return f"the API server refuses the pods of spec.{deployment['metadata']['labels'][names.ROLE]}: {reason}"


def _status_of(kind: str, namespace: str, name: str, uid: str, status: msgspec.Struct) -> Manifest:
    metadata = {"name": name, "namespace": namespace, "uid": uid}
    return {
        "apiVersion": api.API_VERSION,
        "kind": kind,
        "metadata": metadata,
        "status": msgspec.to_builtins(status),
    }
