"""Everything that one LLMDeployment becomes, as manifests. Pure: the same spec renders to the same bytes.

`render_revision` makes what changes when pods change; `render` puts the objects of a deployment together from the
revisions that run and the replicas that were decided elsewhere (rollout.py).
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct

from penstock.operator import api, names
from penstock.operator.config import OperatorConfig
from penstock.operator.pods import Template, model_uri, router_pod, router_settings, worker_pod

Manifest = dict[str, Any]

_NO_DEADLINE = 2**31 - 1
"""For Kubernetes no deadline at all: it writes no condition Progressing, which the LLMDeployment has."""


class Revision(Struct, frozen=True):
    """What pods of one revision look like. Kept in a ControllerRevision, so that it can be repaired while the spec
    already says something else."""

    hash: str
    model: str
    prefill: Template
    decode: Template
    router: Template
    settings: dict[str, str]
    """Of the router."""

    @property
    def fingerprint(self) -> str:
        """Of all of it: routers change without changing the workers' hash."""
        return digest(self)

    def pod(self, role: api.Role) -> Template:
        template: Template = getattr(self, role)
        return template


@dataclass(frozen=True)
class Parent:
    """The LLMDeployment that owns what is rendered."""

    name: str
    namespace: str
    uid: str

    def owner(self) -> Manifest:
        return {
            "apiVersion": api.API_VERSION,
            "kind": "LLMDeployment",
            "name": self.name,
            "uid": self.uid,
            "controller": True,
        }


def digest(value: Any, num_bytes: int = 5) -> str:
    """A short hash of JSON, whatever the order of its keys."""
    return blake2b(msgspec.json.encode(value, order="deterministic"), digest_size=num_bytes).hexdigest()


def render_revision(name: str, spec: api.Spec, config: OperatorConfig) -> Revision:
    """The revision that `spec` asks for. Raises ModelError for an impossible uri."""
    prefill = worker_pod(name, "prefill", spec, config)
    decode = worker_pod(name, "decode", spec, config)
    model_hash = digest([model_uri(spec.model), spec.kv_cache.dtype], 4)
    settings = router_settings(name, spec, model_hash)
    router = router_pod(name, spec, config, digest(settings))
    return Revision(digest([prefill, decode]), model_hash, prefill, decode, router, settings)


def pool(parent: Parent, role: api.Role, spec: api.Spec) -> Manifest:
    """The LLMPool without its replicas, which belong to whoever scales."""
    bounds = getattr(getattr(spec, role), "scaling", None)
    body: Manifest = {"deployment": parent.name, "role": role}
    body["minReplicas"], body["maxReplicas"] = (bounds.min_replicas, bounds.max_replicas) if bounds else (0, 5000)
    return _object(parent, api.API_VERSION, "LLMPool", names.pool_name(parent.name, role), role, spec=body)


def controller_revision(parent: Parent, revision: Revision) -> Manifest:
    """The memory of a revision. Its data never changes."""
    manifest = _object(
        parent,
        "apps/v1",
        "ControllerRevision",
        names.revision_name(parent.name, revision.fingerprint),
        revision=revision,
    )
    return manifest | {"revision": 1, "data": msgspec.to_builtins(revision)}


def workers(parent: Parent, role: api.Role, revision: Revision, replicas: int) -> list[Manifest]:
    """The Deployment of one pool's revision, and the headless Service in whose EndpointSlices routers find its pods."""
    name = names.workload_name(parent.name, role, revision.hash)
    service = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": names.selector(parent.name, role, revision.hash),
        "ports": [{"name": "http", "port": names.WORKER_PORT, "protocol": "TCP", "targetPort": "http"}],
    }
    deployment = {
        "replicas": replicas,
        "revisionHistoryLimit": 0,
        "progressDeadlineSeconds": _NO_DEADLINE,
        "selector": {"matchLabels": names.selector(parent.name, role, revision.hash)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": _marked(revision.pod(role), "labels", {names.REVISION: revision.hash, names.MODEL: revision.model}),
    }
    return [
        _object(parent, "v1", "Service", name, role, revision, spec=service),
        _object(parent, "apps/v1", "Deployment", name, role, revision, spec=deployment),
    ]


def router(
    parent: Parent, revision: Revision, replicas: int, service_type: str, *, account: str = ""
) -> list[Manifest]:
    """The router with its rights, its settings and the Service that clients use.

    `account` is the uid of its ServiceAccount if pods must start anew because of it (plan.py says when).
    """
    name = names.pool_name(parent.name, "router")
    group = "rbac.authorization.k8s.io"
    role_body: Manifest = {
        "rules": [
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}
        ]
    }
    binding: Manifest = {
        "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": parent.namespace}],
    }
    service = {
        "type": service_type,
        "selector": names.selector(parent.name, "router"),
        "ports": [
            {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"},
            {"name": "http-alt", "port": names.ROUTER_PORT, "protocol": "TCP", "targetPort": "http"},
        ],
    }
    deployment = {
        "replicas": replicas,
        "revisionHistoryLimit": 0,
        "progressDeadlineSeconds": _NO_DEADLINE,
        "selector": {"matchLabels": names.selector(parent.name, "router")},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": _marked(revision.router, "annotations", {names.ACCOUNT: account} if account else {}),
    }
    return [
        _object(parent, "v1", "ServiceAccount", name, "router", automountServiceAccountToken=True),
        _object(parent, f"{group}/v1", "Role", name, "router", **role_body),
        _object(parent, f"{group}/v1", "RoleBinding", name, "router", **binding),
        _object(parent, "v1", "ConfigMap", name, "router", data=revision.settings),
        _object(parent, "apps/v1", "Deployment", name, "router", spec=deployment),
        _object(parent, "v1", "Service", parent.name, "router", spec=service),
    ]


def disruption_budget(parent: Parent, role: api.Role) -> Manifest:
    """Evictions take one pod of a role at a time."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": names.selector(parent.name, role)}}
    return _object(parent, "policy/v1", "PodDisruptionBudget", names.pool_name(parent.name, role), role, spec=spec)


def network_policy(parent: Parent) -> Manifest:
    """Worker ports accept only the deployment's own pods: its routers the HTTP port, its workers all (KV transfer).

    A namespace that is labelled for it may scrape; probes come from the node, which policies always admit.
    """

    def pods(*roles: str) -> Manifest:
        found = {"key": names.ROLE, "operator": "In", "values": list(roles)}
        return {"podSelector": {"matchLabels": {names.DEPLOYMENT: parent.name}, "matchExpressions": [found]}}

    http = [{"port": names.WORKER_PORT, "protocol": "TCP"}]
    spec = {
        "podSelector": pods("prefill", "decode")["podSelector"],
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"namespaceSelector": {"matchLabels": {f"{api.GROUP}/metrics": "true"}}}], "ports": http},
            {"from": [pods("router")], "ports": http},
            {"from": [pods("prefill", "decode")]},
        ],
    }
    return _object(parent, "networking.k8s.io/v1", "NetworkPolicy", f"{parent.name}-workers", spec=spec)


def secret(parent: Parent, key: str) -> Manifest:
    """The key of the block hashes. Created once; the operator has no right to read it."""
    return _object(parent, "v1", "Secret", names.secret_name(parent.name), type="Opaque", stringData={"secret": key})


def as_new(manifest: Manifest) -> Manifest:
    """What to create an object with. Else Kubernetes would write the first revision number of each Deployment itself,
    and its next write, of the status, would conflict with that: a tenth of all requests while many start."""
    if manifest["kind"] != "Deployment":
        return manifest
    metadata = manifest["metadata"]
    annotations = metadata["annotations"] | {"deployment.kubernetes.io/revision": "1"}
    return manifest | {"metadata": metadata | {"annotations": annotations}}


def _marked(pod: Template, field: str, marks: dict[str, str]) -> Template:
    """With more labels or annotations; `field` says which."""
    metadata = pod["metadata"]
    return pod | {"metadata": metadata | {field: metadata.get(field, {}) | marks}}


def _object(
    parent: Parent,
    api_version: str,
    kind: str,
    name: str,
    role: api.Role | None = None,
    revision: Revision | None = None,
    **body: Any,
) -> Manifest:
    """The frame of every derived object; APPLIED is the hash of all that the operator wants of it."""
    labels = names.labels(parent.name, role, *((revision.hash, revision.model) if revision else ()))
    metadata = {
        "name": name,
        "namespace": parent.namespace,
        "labels": labels,
        "ownerReferences": [parent.owner()],
    }
    manifest = {"apiVersion": api_version, "kind": kind, "metadata": metadata} | body
    metadata["annotations"] = {names.APPLIED: digest(manifest)}
    return manifest
