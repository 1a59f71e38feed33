"""Everything the operator has seen, indexed by LLMDeployment: fed by watches, read by `observe`. No I/O."""

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct, field, structs

from penstock.operator import api, names
from penstock.operator.observed import Observed, Seen, Verification, seen
from penstock.operator.problems import Metadata, Pod, PodState, Problem, Wait, state_of, wait_of

Key: TypeAlias = tuple[str, str]
"""Namespace and name of an LLMDeployment."""
PodPlace: TypeAlias = tuple[str, str]
"""Namespace and name of a pod."""


class Deployment(Struct, frozen=True):
    """An LLMDeployment as it was seen last. `spec` stays JSON until it is looked at."""

    metadata: Metadata
    spec: msgspec.Raw
    status: api.Status = field(default_factory=api.Status)

    @property
    def key(self) -> Key:
        return self.metadata.namespace, self.metadata.name


class Store:
    """`on_change` is called with the key of every LLMDeployment about which something new is known."""

    def __init__(self, on_change: Callable[[Key], None]) -> None:
        self._on_change = on_change
        self.deployments: dict[Key, Deployment] = {}
        self._objects: dict[Key, dict[tuple[str, str], Seen]] = defaultdict(dict)
        self._pods: dict[Key, dict[str, PodState]] = defaultdict(dict)
        self._pod_keys: dict[PodPlace, Key] = {}
        self._keys: dict[tuple[str, str, str], Key] = {}
        """(kind, namespace, name) of an object -> its LLMDeployment."""
        self.verifications: dict[Key, Verification] = {}
        self.refusals: dict[Key, tuple[str, ...]] = {}
        self.fetching: dict[Key, str] = {}
        """How far the fetching of models is."""
        self.drifts: dict[Key, tuple[str, ...]] = {}
        """What routers say that they predict wrongly."""
        self._waits: dict[PodPlace, Wait] = {}
        self._causes: dict[PodPlace, Problem] = {}
        """Why pods wait, where somebody has asked."""

    def observe(self, key: Key) -> Observed:
        """What is known of one LLMDeployment."""
        deployment = self.deployments.get(key)
        return Observed(
            objects=dict(self._objects.get(key, {})),
            pods=tuple(self._with_cause(key[0], pod) for pod in self._pods.get(key, {}).values()),
            status=deployment.status if deployment else api.Status(),
            verification=self.verifications.get(key),
            refusals=self.refusals.get(key, ()),
            fetching=self.fetching.get(key, ""),
            drift=self.drifts.get(key),
        )

    def put_deployment(self, body: dict[str, Any]) -> None:
        """An LLMDeployment was seen; an older sight than the one known is ignored."""
        found = read_deployment(body)
        known = self.deployments.get(found.key)
        if known is not None and known.metadata.uid == found.metadata.uid:
            if int(found.metadata.resource_version) <= int(known.metadata.resource_version):
                return
        elif known is not None:
            self._forget_state(found.key)
        self.deployments[found.key] = found
        self._on_change(found.key)

    def drop_deployment(self, key: Key, uid: str | None = None) -> None:
        """It is gone; with `uid` only if that is the one known."""
        known = self.deployments.get(key)
        if known is not None and uid in (None, known.metadata.uid):
            del self.deployments[key]
            self._forget_state(key)

    def put(self, manifest: dict[str, Any]) -> None:
        """An owned object was seen, in a watch or as the answer to a change."""
        metadata = manifest["metadata"]
        key = (metadata["namespace"], metadata.get("labels", {}).get(names.DEPLOYMENT, ""))
        known = self._objects.get(key, {}).get((manifest["kind"], metadata["name"]))
        if known and known.uid == metadata["uid"] and known.resource_version >= int(metadata["resourceVersion"]):
            return  # often: the answer to a change comes again from the watch
        found = seen(manifest)
        before = self._keys.get((found.kind, found.namespace, found.name), key)
        if before != key:  # somebody changed its label
            self.drop(found.kind, found.namespace, found.name)
        self._objects[key][found.kind, found.name] = found
        self._keys[found.kind, found.namespace, found.name] = key
        self._on_change(key)

    def drop(self, kind: str, namespace: str, name: str, uid: str | None = None) -> None:
        """An owned object is gone; with `uid` only if that is the one known."""
        key = self._keys.get((kind, namespace, name))
        known = self._objects.get(key, {}).get((kind, name)) if key else None
        if key is None or known is None or uid not in (None, known.uid):
            return
        del self._keys[kind, namespace, name]
        del self._objects[key][kind, name]
        if not self._objects[key]:
            del self._objects[key]
        self._on_change(key)

    def put_pod(self, pod: Pod) -> None:
        """A pod was seen. Most of its changes mean nothing here."""
        key = (pod.metadata.namespace, pod.metadata.labels.get(names.DEPLOYMENT, ""))
        state = state_of(pod)
        place = (pod.metadata.namespace, state.name)
        if self._pod_keys.get(place, key) != key:  # somebody changed its label
            self.drop_pod(*place)
        self._pod_keys[place] = key
        if self._pods[key].get(state.name) != state:
            is_news = state.problem is not None or state.name in self._pods[key]
            self._pods[key][state.name] = state
            if is_news:
                self._on_change(key)
        self._put_wait(place, wait_of(pod))

    def drop_pod(self, namespace: str, name: str) -> None:
        self._put_wait((namespace, name), None)
        key = self._pod_keys.pop((namespace, name), None)
        if key is None:
            return
        del self._pods[key][name]
        if not self._pods[key]:
            del self._pods[key]
        self._on_change(key)

    def pod_names(self) -> list[tuple[str, str]]:
        """(namespace, name) of every pod."""
        return list(self._pod_keys)

    def object_names(self, kind: str) -> list[tuple[str, str]]:
        """(namespace, name) of every owned object of a kind."""
        return [(namespace, name) for of, namespace, name in self._keys if of == kind]

    def num_objects(self) -> Counter[str]:
        """Owned objects by kind."""
        return Counter(kind for kind, _, _ in self._keys)

    def set_verification(self, key: Key, verification: Verification | None) -> None:
        if key in self.deployments and self.verifications.get(key) != verification:
            if verification is None:
                self.verifications.pop(key, None)
            else:
                self.verifications[key] = verification
            self._on_change(key)

    def fetching_pods(self) -> dict[Key, str]:
        """One pod per LLMDeployment whose pods fetch their model."""
        found = {key: [pod.name for pod in pods.values() if pod.is_fetching] for key, pods in self._pods.items()}
        return {key: min(names_) for key, names_ in found.items() if names_ and key in self.deployments}

    def set_fetching(self, key: Key, said: str) -> None:
        if self.fetching.get(key, "") != said:
            self.fetching[key] = said
            if not said:
                del self.fetching[key]
            self._on_change(key)

    def ready_routers(self) -> dict[Key, list[str]]:
        """Addresses of the routers of each LLMDeployment that has any."""
        found = {key: [pod.address for pod in pods.values() if pod.address] for key, pods in self._pods.items()}
        return {key: addresses for key, addresses in found.items() if addresses and key in self.deployments}

    def set_drift(self, key: Key, drift: tuple[str, ...] | None) -> None:
        """What its routers say that they predict wrongly; None when there is none to ask."""
        if key in self.deployments and self.drifts.get(key) != drift:
            if drift is None:
                del self.drifts[key]
            else:
                self.drifts[key] = drift
            self._on_change(key)

    def waiting_pods(self) -> dict[PodPlace, Wait]:
        """One pod per LLMDeployment, role and wait. A router is not ready before a decode worker is."""
        found: dict[tuple[Key, str, Wait], PodPlace] = {}
        for place, wait in sorted(self._waits.items()):
            key = self._pod_keys[place]
            pods = self._pods[key]
            role = pods[place[1]].role
            if role != "router" or any(pod.is_ready and pod.role == "decode" for pod in pods.values()):
                found.setdefault((key, role, wait), place)
        return {place: wait for (_, _, wait), place in found.items()}

    def set_cause(self, place: PodPlace, cause: Problem | None) -> None:
        """Why a pod waits."""
        if self._causes.get(place) != cause and place in self._waits:
            self._causes.pop(place, None)
            if cause is not None:
                self._causes[place] = cause
            self._on_change(self._pod_keys[place])

    def _put_wait(self, place: PodPlace, wait: Wait | None) -> None:
        if self._waits.get(place) == wait:
            return
        self._waits.pop(place, None)
        if wait is not None:
            self._waits[place] = wait
        if self._causes.pop(place, None) is not None:
            self._on_change(self._pod_keys[place])

    def _with_cause(self, namespace: str, pod: PodState) -> PodState:
        cause = self._causes.get((namespace, pod.name))
        return structs.replace(pod, problem=cause) if cause else pod

    def _forget_state(self, key: Key) -> None:
        self.verifications.pop(key, None)
        self.refusals.pop(key, None)
        self.fetching.pop(key, None)
        self.drifts.pop(key, None)


def read_deployment(body: dict[str, Any]) -> Deployment:
    """An LLMDeployment from the API server's JSON; a status of another form counts as none."""
    status = api.Status()
    with suppress(msgspec.ValidationError):
        status = msgspec.convert(body.get("status") or {}, api.Status)
    metadata = msgspec.convert(body["metadata"], Metadata)
    return Deployment(metadata, msgspec.Raw(msgspec.json.encode(body.get("spec") or {})), status)
