"""As much of the Kubernetes API server as a list and a watch of EndpointSlices need, over real HTTP."""

import asyncio
import json
from typing import Any

from aiohttp import web

from tests.router.local_server import LocalServer

SELECTOR = "serving.penstock.dev/deployment=demo"


def endpoint_slice(
    name: str,
    *addresses: str,
    role: str = "decode",
    revision: str = "r1",
    terminating: tuple[str, ...] = (),
    **more: Any,
) -> dict[str, Any]:
    """A slice as Kubernetes writes it."""
    labels = {"serving.penstock.dev/role": role, "serving.penstock.dev/revision": revision}
    endpoints = [
        {
            "addresses": [address],
            "conditions": {"ready": True, "serving": True, "terminating": address in terminating},
            "nodeName": "node-0",
        }
        for address in addresses
    ]
    return {
        "metadata": {"name": name, "labels": labels, "managedFields": [{}]},
        "addressType": "IPv4",
        "endpoints": endpoints or None,
        "ports": [{"name": "http", "port": 8100, "protocol": "TCP"}],
    } | more


class FakeApiServer(LocalServer):
    """Holds slices and tells watchers of changes. What happened before `compacted` can no longer be watched."""

    def __init__(self) -> None:
        self.slices: dict[str, dict[str, Any]] = {}
        self.version = 100
        self.compacted = 0
        self.refusal: int | None = None
        self.lists = 0
        self.watches: list[str] = []
        """The resourceVersions that watches began with."""
        self.tokens: list[str] = []
        self._log: list[tuple[int, str]] = []
        self._changed = asyncio.Event()
        self._ending = False

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices", self._answer)
        return app

    def put(self, item: dict[str, Any]) -> None:
        name = item["metadata"]["name"]
        self._record("MODIFIED" if name in self.slices else "ADDED", item)
        self.slices[name] = item

    def delete(self, name: str) -> None:
        self._record("DELETED", self.slices.pop(name))

    def bookmark(self) -> None:
        self._record("BOOKMARK", {"metadata": {}})

    def compact(self) -> None:
        """Forgets all changes so far and tells every watcher so, as etcd's compaction does."""
        self.compacted = self.version
        self._write("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})

    def end_watches(self) -> None:
        """As the server does after `timeoutSeconds`."""
        self._ending = True
        self._changed.set()
        self._changed = asyncio.Event()

    def _record(self, kind: str, item: dict[str, Any]) -> None:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self._write(kind, item)

    def _write(self, kind: str, item: dict[str, Any]) -> None:
        self._log.append((self.version, json.dumps({"type": kind, "object": item})))
        self._changed.set()
        self._changed = asyncio.Event()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(request.headers.get("Authorization", ""))
        assert request.query["labelSelector"] == SELECTOR
        if self.refusal is not None:
            status = {"kind": "Status", "code": self.refusal, "message": "endpointslices is forbidden"}
            return web.json_response(status, status=self.refusal)
        if "watch" not in request.query:
            self.lists += 1
            return web.json_response(
                {"metadata": {"resourceVersion": str(self.version)}, "items": list(self.slices.values()) or None}
            )
        return await self._watch(request, int(request.query["resourceVersion"]))

    async def _watch(self, request: web.Request, version: int) -> web.StreamResponse:
        self._ending = False
        self.watches.append(str(version))
        if version < self.compacted:
            return web.json_response({"kind": "Status", "code": 410, "message": "too old"}, status=410)
        response = web.StreamResponse()
        await response.prepare(request)
        told = next((index for index, (at, _) in enumerate(self._log) if at > version), len(self._log))
        while True:
            for _, line in self._log[told:]:
                await response.write(line.encode() + b"\n")
                if '"ERROR"' in line:
                    return response
            told = len(self._log)
            await self._changed.wait()
            if self._ending:
                return response
