"""List and watch of one kind into the store, so that nothing is missed: also not what vanished while nobody watched.

kopf watches the users' objects; their children are watched here, for three reasons (measured): kopf never reports what
was deleted while its watch was broken; handlers run before other kinds are listed; ten thousand children would each
get kopf's own bookkeeping.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from penstock.operator import names
from penstock.operator.client import ApiError, ApiUnavailable, Client
from penstock.operator.kinds import POD, Kind
from penstock.operator.problems import Pod
from penstock.operator.store import Store

log = logging.getLogger(__name__)

WATCH_S = 45
"""A watch is begun anew after so long: one that has stalled delays what it should have told by no more."""
STALLED_S = 120.0
"""A watch that has not proved to live for so long is stuck."""
RELIST_S = 600.0
"""The whole is compared with the store so often, in case that all else has failed."""
_PAGE = 100
"""Objects per answer of a list, which are in memory as dicts for a moment."""


class _Line(Struct):
    type: str
    object: msgspec.Raw


class _Page(Struct):
    metadata: dict[str, Any]
    items: list[dict[str, Any]]


class Watch:
    """Keeps the store's view of one kind. `synced` is set after the first list."""

    def __init__(
        self, client: Client, kind: Kind, namespace: str, store: Store, on_relist: Callable[[str], None]
    ) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        self.alive_at = time.monotonic()
        self._client = client
        self._path = kind.path(namespace)
        self._store = store
        self._on_relist = on_relist
        self._listed_at = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        self.alive_at = time.monotonic()
        version = ""
        while True:
            try:
                if not version or time.monotonic() - self._listed_at > RELIST_S:
                    version = await self._list()
                version = await self._watch(version)
            except ApiError as error:
                version = ""  # 410: the past is gone; anything else: begin from the beginning too
                if error.status not in (410, 429, 500, 503, 504):
                    log.error("%s", error)
                await asyncio.sleep(error.retry_after_s or random.uniform(0.3, 0.8))
            except (ApiUnavailable, msgspec.DecodeError) as error:  # a line may be cut
                log.info("watch of %s: %s", self.kind.plural, error)
                await asyncio.sleep(random.uniform(0.3, 0.8))

    @property
    def age_s(self) -> float:
        """Since the watch last proved to be alive."""
        return time.monotonic() - self.alive_at

    async def _list(self) -> str:
        """Replaces what the store holds; returns the version from which to watch."""
        if self.synced.is_set():
            self._on_relist(self.kind.kind)
        before = set(self._known())
        query = {"labelSelector": names.SELECTOR, "limit": _PAGE}
        while True:
            answer = await self._client.request("GET", self._path, query)
            page = msgspec.convert(answer, _Page)
            for item in page.items:
                # Items of a list do not say what they are.
                item |= {"apiVersion": self.kind.api_version, "kind": self.kind.kind}
                metadata = item["metadata"]
                before.discard((metadata["namespace"], metadata["name"]))
                self._put(item)
            if not page.metadata.get("continue"):
                break
            query["continue"] = page.metadata["continue"]
        for namespace, name in before:
            self._drop(namespace, name)
        self.alive_at = self._listed_at = time.monotonic()
        self.synced.set()
        version: str = page.metadata["resourceVersion"]
        return version

    async def _watch(self, version: str) -> str:
        query = {
            "labelSelector": names.SELECTOR,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": WATCH_S,
        }
        async with self._client.stream(self._path, query, WATCH_S + 5) as lines:
            async for line in lines:
                version = self._take(msgspec.json.decode(line, type=_Line)) or version
                self.alive_at = time.monotonic()
        self.alive_at = time.monotonic()
        return version

    def _take(self, line: _Line) -> str:
        """One event. Returns its version. Raises ApiError when the watch cannot go on."""
        if line.type == "ERROR":
            status = msgspec.json.decode(line.object)
            raise ApiError(f"watch of {self.kind.plural}: {status.get('message')}", status=status.get("code", 500))
        if self.kind is POD and line.type != "BOOKMARK":
            pod = msgspec.json.decode(line.object, type=Pod)
            if line.type == "DELETED":
                self._store.drop_pod(pod.metadata.namespace, pod.metadata.name)
            else:
                self._store.put_pod(pod)
            return pod.metadata.resource_version
        manifest = msgspec.json.decode(line.object)
        metadata = manifest["metadata"]
        version: str = metadata["resourceVersion"]
        if line.type == "DELETED":
            self._store.drop(self.kind.kind, metadata["namespace"], metadata["name"], metadata["uid"])
        elif line.type != "BOOKMARK":
            self._store.put(manifest)
        return version

    def _put(self, item: dict[str, Any]) -> None:
        if self.kind is POD:
            self._store.put_pod(msgspec.convert(item, Pod))
        else:
            self._store.put(item)

    def _known(self) -> list[tuple[str, str]]:
        if self.kind is POD:
            return self._store.pod_names()
        return self._store.object_names(self.kind.kind)

    def _drop(self, namespace: str, name: str) -> None:
        if self.kind is POD:
            self._store.drop_pod(namespace, name)
        else:
            self._store.drop(self.kind.kind, namespace, name)
