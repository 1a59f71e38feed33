"""What bench.operator_scale does to its cluster: LLMDeployments whose pods run on simulated nodes come and go."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from penstock.operator import names
from penstock.operator.api import API_VERSION
from penstock.operator.client import ApiError, Client
from penstock.operator.kinds import LLM_DEPLOYMENT, OWNED, POD

NAMESPACE = "default"
PARALLEL = 16


async def check(client: Client) -> None:
    nodes = await client.get("/api/v1/nodes", labelSelector="type=kwok")
    if len(nodes["items"]) < 20:
        sys.exit("bench.operator_scale needs simulated nodes: run `cluster nodes 100` of the shared cluster script")


def spec_of(replicas: int) -> dict[str, Any]:
    """An LLMDeployment's spec with so many workers in each pool, all on simulated nodes."""
    toleration = {"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}
    small = {"requests": {"cpu": "10m", "memory": "16Mi"}}
    pods = {"tolerations": [toleration], "nodeSelector": {"type": "kwok"}, "resources": small}
    pool = pods | {"replicas": replicas, "gpus": 0}
    return {"model": {"uri": "file:///models/penstock-demo"}, "prefill": pool, "decode": pool, "router": pods}


async def create(client: Client, name: str, replicas: int) -> None:
    spec = spec_of(replicas)
    body = {"apiVersion": API_VERSION, "kind": "LLMDeployment", "metadata": {"name": name}, "spec": spec}
    await client.create(LLM_DEPLOYMENT.path(NAMESPACE), body, manager="bench")


def path(name: str) -> str:
    return LLM_DEPLOYMENT.path(NAMESPACE, name)


async def delete(client: Client, name: str) -> None:
    with contextlib.suppress(ApiError):
        await client.request("DELETE", path(name))


async def delete_all(client: Client) -> None:
    found = await client.get(LLM_DEPLOYMENT.path(NAMESPACE))
    for body in found["items"]:
        await delete(client, body["metadata"]["name"])
    await until(lambda: nothing_left(client), time.perf_counter(), within_s=300)


async def each(num: int, act: Callable[[int], Awaitable[Any]]) -> None:
    """Acts for every index, some at a time."""
    limit = asyncio.Semaphore(PARALLEL)

    async def limited(index: int) -> None:
        async with limit:
            await act(index)

    await asyncio.gather(*(limited(index) for index in range(num)))


async def until(condition: Callable[[], Awaitable[bool]], begin: float, *, within_s: float = 180) -> float:
    """Seconds from `begin` until the condition held."""
    while not await condition():
        if time.perf_counter() - begin > within_s:
            raise TimeoutError(f"not within {within_s} s")
        await asyncio.sleep(0.25)
    return time.perf_counter() - begin


async def nothing_left(client: Client) -> bool:
    for kind in (LLM_DEPLOYMENT, *OWNED, POD):
        query: dict[str, Any] = {"limit": 1}
        if kind is not LLM_DEPLOYMENT:
            query["labelSelector"] = names.SELECTOR
        if (await client.get(kind.path(NAMESPACE), **query))["items"]:
            return False
    return True
