"""The cluster's part of `penstock doctor`: apart, since it needs the Kubernetes client, which other machines lack."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from penstock.errors import ConfigError
from penstock.operator import api, crds
from penstock.operator.client import ApiError, ApiUnavailable, Client, connect
from penstock.operator.commands.config import DoctorConfig
from penstock.operator.commands.finding import Finding, Verdict
from penstock.operator.kinds import LEASE, LLM_DEPLOYMENT, LLM_POOL

OLDEST_MINOR = 30
"""Of Kubernetes 1: as `kubeVersion` in the chart."""


async def look_at_cluster(config: DoctorConfig) -> list[Finding]:
    """What is missing in the cluster that KUBECONFIG, or the pod, names; and whether there is one."""
    try:
        async with connect() as client:
            return [finding async for finding in _look(client, config)]
    except (ConfigError, ApiUnavailable) as error:
        return [Finding("FAIL", "cluster", f"{error}; set KUBECONFIG to a cluster that answers")]


async def _look(client: Client, config: DoctorConfig) -> AsyncIterator[Finding]:
    version = await client.get("/version")
    minor = int("".join(filter(str.isdigit, version["minor"])) or 0)
    verdict: Verdict = "ok" if minor >= OLDEST_MINOR else "FAIL"
    yield Finding(verdict, "cluster", f"Kubernetes {version['gitVersion']} (1.{OLDEST_MINOR} or newer is needed)")
    for wanted in crds.crds():
        yield await _crd(client, wanted)
    yield await _operator(client, config)
    yield await _may(client, "create", LLM_DEPLOYMENT.plural, "apply LLMDeployments")
    yield await _may(client, "patch", f"{LLM_POOL.plural}/scale", "scale LLMPools")
    async for finding in _nodes(client):
        yield finding


async def _crd(client: Client, wanted: dict[str, Any]) -> Finding:
    name = wanted["metadata"]["name"]
    try:
        found = await client.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    except ApiError as error:
        if error.status == 404:
            return Finding("FAIL", "CRD", f"{name} is not installed: helm install penstock charts/penstock")
        return Finding("warn", "CRD", f"{name} cannot be read: {error}")
    versions = {version["name"]: version for version in found["spec"]["versions"]}
    served = versions.get(api.VERSION)
    if served is None:
        return Finding("FAIL", "CRD", f"{name} does not serve {api.VERSION}: upgrade the chart")
    known = _fields(served)
    missing = sorted(_fields(wanted["spec"]["versions"][0]) - known)
    if missing:
        return Finding("warn", "CRD", f"{name} is older than this program (no spec.{missing[0]}): upgrade the chart")
    return Finding("ok", "CRD", name)


def _fields(version: dict[str, Any]) -> set[str]:
    return set(version["schema"]["openAPIV3Schema"]["properties"].get("spec", {}).get("properties", {}))


async def _operator(client: Client, config: DoctorConfig) -> Finding:
    try:
        lease = await client.get(LEASE.path(config.operator_namespace, config.lease_name))
    except ApiError as error:
        hint = f"no Lease {config.lease_name} in namespace {config.operator_namespace}"
        return Finding("FAIL" if error.status == 404 else "warn", "operator", f"{hint}: is it installed there? {error}")
    spec = lease["spec"]
    holder = spec.get("holderIdentity") or ""
    renewed = datetime.fromisoformat(spec["renewTime"])
    age_s = (datetime.now(UTC) - renewed).total_seconds()
    if not holder or age_s > 2 * spec["leaseDurationSeconds"]:
        return Finding("FAIL", "operator", f"nobody leads (last {holder or 'nobody'}, {age_s:.0f} s ago): see its pods")
    return Finding("ok", "operator", f"{holder.split('_')[0]} leads")


async def _may(client: Client, verb: str, resource: str, what: str) -> Finding:
    plural, _, subresource = resource.partition("/")
    asked = {"verb": verb, "group": api.GROUP, "resource": plural, "subresource": subresource, "namespace": "default"}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    answer = await client.request("POST", path, {}, review | {"spec": {"resourceAttributes": asked}})
    if answer["status"].get("allowed"):
        return Finding("ok", "permission", f"you may {what}")
    return Finding("warn", "permission", f"you may not {what} in namespace default")


async def _nodes(client: Client) -> AsyncIterator[Finding]:
    try:
        nodes = (await client.get("/api/v1/nodes"))["items"]
    except ApiError as error:
        yield Finding("warn", "nodes", f"cannot be listed: {error}")
        return
    ready = [node for node in nodes if _is_ready(node)]
    yield Finding("ok" if ready else "FAIL", "nodes", f"{len(ready)} of {len(nodes)} ready")
    gpus = sum(int(node["status"].get("allocatable", {}).get("nvidia.com/gpu", 0)) for node in nodes)
    without = "no node has nvidia.com/gpu: install NVIDIA's device plugin, or set gpus: 0 in prefill and decode"
    yield Finding("ok" if gpus else "warn", "GPUs", f"{gpus} nvidia.com/gpu" if gpus else without)
    rdma = {name for node in nodes for name in node["status"].get("allocatable", {}) if name.startswith("rdma/")}
    said = f"resources {', '.join(sorted(rdma))}" if rdma else "no rdma/ resource: KV blocks move over TCP"
    yield Finding("ok" if rdma else "warn", "RDMA", said)


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = node["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
