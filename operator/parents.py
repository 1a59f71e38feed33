"""The LLMDeployments themselves: kopf watches them, and a plain list now and then checks that kopf missed nothing.

kopf says nothing of an object that was deleted while its watch was broken, and a watch may stall. Handlers only put
what they are told into the store; everything else happens in controller.py.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, cast

import kopf

from penstock.operator.api import GROUP, VERSION
from penstock.operator.client import ApiError, ApiUnavailable, Client
from penstock.operator.config import OperatorConfig
from penstock.operator.kinds import LLM_DEPLOYMENT
from penstock.operator.store import Store

log = logging.getLogger(__name__)

CHECK_S = 30.0
_PAGE = 250


def registry_of(store: Store) -> kopf.OperatorRegistry:
    """kopf's handlers. There are no daemons, timers or finalizers: users' objects stay untouched but for status."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**context: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**context) or kopf.login_with_kubeconfig(**context)

    @kopf.on.event(GROUP, VERSION, LLM_DEPLOYMENT.plural, registry=registry)
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        body: dict[str, Any] = dict(cast("Any", event["object"]))
        if event["type"] == "DELETED":
            metadata = body["metadata"]
            store.drop_deployment((metadata["namespace"], metadata["name"]), metadata["uid"])
        else:
            store.put_deployment(body)

    return registry


def settings() -> kopf.OperatorSettings:
    """Of kopf, each with its reason."""
    found = kopf.OperatorSettings()
    found.scanning.disabled = True  # else it lists CRDs and namespaces, for which there are no rights
    found.posting.enabled = False  # our own events are about conditions, not about handlers
    found.networking.error_backoffs = (0.5, 1, 1)  # an API server that is back is noticed within a second
    found.networking.request_timeout = 15.0
    found.watching.chunk_size = 100  # peak memory of the first list
    found.persistence.finalizer = f"{GROUP}/finalizer"
    found.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    found.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    return found


async def watch_parents(config: OperatorConfig, store: Store, on_start: Callable[[], None]) -> None:
    """Runs kopf until cancelled. `on_start` is called when kopf has taken over the process's signals, as it does.

    Cancelled, kopf cancels every task that is not named to it as another's.
    """
    others = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry_of(store),
        settings=settings(),
        standalone=True,
        identity=cast("Any", "penstock"),
        clusterwide=not config.namespace,
        namespaces=[config.namespace] if config.namespace else (),
    )
    on_start()
    await kopf.run_tasks(tasks, ignored=others)


class Check:
    """Compares a list of all LLMDeployments with the store every CHECK_S."""

    def __init__(self, client: Client, config: OperatorConfig, store: Store) -> None:
        self._client = client
        self._path = LLM_DEPLOYMENT.path(config.namespace)
        self._store = store
        self.kopf_seen_at = time.monotonic()

    async def run(self) -> None:
        """Until cancelled."""
        self.kopf_seen_at = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                await self.compare()
            except (ApiError, ApiUnavailable) as error:
                log.info("%s", error)

    @property
    def age_s(self) -> float:
        """Since kopf last was known to see what happens."""
        return time.monotonic() - self.kopf_seen_at

    async def compare(self) -> None:
        """Puts right what the store has wrong."""
        query: dict[str, Any] = {"limit": _PAGE}
        bodies: list[dict[str, Any]] = []
        while True:
            page = await self._client.get(self._path, **query)
            bodies += page["items"]
            if not page["metadata"].get("continue"):
                break
            query["continue"] = page["metadata"]["continue"]
        behind = set()
        listed = set()
        for body in bodies:
            metadata = body["metadata"]
            listed.add(metadata["uid"])
            known = self._store.deployments.get((metadata["namespace"], metadata["name"]))
            if known is None or known.metadata.generation < metadata.get("generation", 0):
                behind.add(f"{metadata['uid']} {metadata.get('generation', 0)}")
                self._store.put_deployment(body)
        version = int(page["metadata"]["resourceVersion"])
        for key, known in list(self._store.deployments.items()):
            if known.metadata.uid not in listed and int(known.metadata.resource_version) < version:
                behind.add(known.metadata.uid)
                self._store.drop_deployment(key, known.metadata.uid)
        if behind:
            log.warning("%d LLMDeployments had changed without a word from kopf", len(behind))
        else:
            self.kopf_seen_at = time.monotonic()
