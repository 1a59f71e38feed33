"""Asks, while pods fetch their model, how far they are, so that the LLMDeployment's conditions can say it.

The init container writes its progress to its log (sources/progress.py). It cannot write to its own pod's status: that
takes a right over every pod's status, which no worker should have. One pod per deployment is asked.
"""

import asyncio

from penstock.operator.client import ApiError, ApiUnavailable, Client
from penstock.operator.model_pod import FETCH_CONTAINER
from penstock.operator.store import Key, Store

PAUSE_S = 5.0
_PARALLEL = 8


class Fetching:
    """Costs nothing while nothing is fetched."""

    def __init__(self, client: Client, store: Store) -> None:
        self._client = client
        self._store = store
        self._limit = asyncio.Semaphore(_PARALLEL)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            pods = self._store.fetching_pods()
            async with asyncio.TaskGroup() as group:
                for key, pod in pods.items():
                    group.create_task(self._ask(key, pod))
            for key in [key for key in self._store.fetching if key not in pods]:
                self._store.set_fetching(key, "")
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, key: Key, pod: str) -> None:
        path = f"/api/v1/namespaces/{key[0]}/pods/{pod}/log"
        async with self._limit:
            try:
                log = await self._client.text(path, container=FETCH_CONTAINER, tailLines=1)
            except (ApiError, ApiUnavailable):
                return  # the pod may just have ended; what was known stays
        self._store.set_fetching(key, progress_of(log))


def progress_of(log: str) -> str:
    """The last line that says something, without the program's name: `hf://a/b@main: 3.2 GB of 16 GB (20 %), ...`."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1].removeprefix("penstock: ")[:300] if lines else ""
