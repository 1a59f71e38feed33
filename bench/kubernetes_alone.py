"""The peer of bench.operator_scale: what Kubernetes alone takes for the same objects.

This program creates what the operator would make at its first look at each LLMDeployment, as fast as the API server
takes it, without an operator: no status, no watch, no check. What is left of the time is Kubernetes' own.
"""

import asyncio
import time
from typing import Any

import msgspec

from bench.kubernetes import NAMESPACE, each, nothing_left, spec_of, until
from penstock.operator import api, names, render
from penstock.operator.actions import Create, CreateSecret, Seed
from penstock.operator.client import Client
from penstock.operator.config import OperatorConfig
from penstock.operator.kinds import BY_NAME, DEPLOYMENT
from penstock.operator.observed import Observed
from penstock.operator.plan import Subject, plan
from penstock.operator.render import Manifest, Parent, render_revision

_OWNERS = "/api/v1/namespaces/default/configmaps"


async def make(client: Client, indices: range, replicas: int) -> float:
    """Seconds until all pods of these deployments, with so many workers in each pool, were ready."""
    owners = {index: await client.create(_OWNERS, _owner(index), manager="bench") for index in indices}
    begin = time.perf_counter()
    making = asyncio.create_task(each(len(indices), lambda number: _make(client, owners[indices[number]], replicas)))
    await _wait_ready(client, set(map(_name, indices)))
    await making
    return time.perf_counter() - begin


async def remove(client: Client, num: int) -> float:
    """Seconds until nothing was left of all of them."""
    begin = time.perf_counter()
    await each(num, lambda index: client.request("DELETE", f"{_OWNERS}/{_name(index)}"))
    return await until(lambda: nothing_left(client), begin, within_s=300)


def _name(index: int) -> str:
    return f"alone-{index}"


def _owner(index: int) -> Manifest:
    """In place of an LLMDeployment, so that deleting it deletes the rest."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": _name(index)}}


async def _make(client: Client, owner: Manifest, replicas: int) -> None:
    metadata = owner["metadata"]
    for manifest in first_objects(metadata["name"], replicas):
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": metadata["name"], "uid": metadata["uid"]}
        manifest["metadata"]["ownerReferences"] = [reference | {"controller": True}]
        await client.create(BY_NAME[manifest["kind"]].path(NAMESPACE), manifest, manager="bench")


def first_objects(name: str, replicas: int) -> list[Manifest]:
    """All that the operator's first look at a deployment makes."""
    spec = msgspec.convert(spec_of(replicas), api.Spec)
    parent = Parent(name, NAMESPACE, "")
    subject = Subject(parent, 1, spec, render_revision(name, spec, OperatorConfig()))
    found = []
    for action in plan(subject, Observed(), "").actions:
        if isinstance(action, Create | Seed):
            found.append(action.manifest)
        elif isinstance(action, CreateSecret):
            found.append(render.secret(parent, "0" * 64))
    return found


async def _wait_ready(client: Client, deployments: set[str]) -> None:
    """Until the Deployments of all pools and routers have all their pods ready."""
    ready: set[str] = set()
    query: dict[str, Any] = {"watch": "true", "labelSelector": names.SELECTOR}
    async with asyncio.timeout(300):
        while True:
            async with client.stream(DEPLOYMENT.path(NAMESPACE), query, 300) as lines:
                async for line in lines:
                    found = msgspec.json.decode(line)["object"]
                    metadata, num_ready = found["metadata"], found.get("status", {}).get("readyReplicas", 0)
                    is_ours = metadata["labels"][names.DEPLOYMENT] in deployments
                    if is_ours and num_ready == found["spec"]["replicas"]:
                        ready.add(metadata["name"])
                    if len(ready) == len(api.ROLES) * len(deployments):
                        return
