"""Asks why pods wait that say nothing of it themselves: a volume that cannot be mounted, a readiness probe that fails.

Only the events of a pod tell, and events are for people: they come late, go after an hour, and repeat themselves. So
they are asked for when a pod has waited for long, of one pod per deployment and role.
"""

import asyncio
import time

import msgspec
from msgspec import Struct

from penstock.operator.client import ApiError, ApiUnavailable, Client
from penstock.operator.kinds import EVENT
from penstock.operator.problems import Metadata, Problem, Wait, sentence
from penstock.operator.store import PodPlace, Store

PATIENCE_S = 5.0
PAUSE_S = 2.0
_PARALLEL = 8


class Event(Struct):
    """What is read of a pod's event."""

    metadata: Metadata
    reason: str = ""
    message: str = ""


class _Events(Struct):
    items: list[Event]


class Waiting:
    """Costs nothing while no pod waits for long."""

    def __init__(self, client: Client, store: Store) -> None:
        self._client = client
        self._store = store
        self._since: dict[tuple[PodPlace, Wait], float] = {}
        self._limit = asyncio.Semaphore(_PARALLEL)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            now = time.monotonic()
            waits = self._store.waiting_pods()
            self._since = {wait: self._since.get(wait, now) for wait in waits.items()}
            async with asyncio.TaskGroup() as group:
                for (place, wait), since in self._since.items():
                    if now - since >= PATIENCE_S:
                        group.create_task(self._ask(place, wait))
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, place: PodPlace, wait: Wait) -> None:
        namespace, pod = place
        async with self._limit:
            try:
                selector = f"involvedObject.name={pod},type=Warning"
                answer = await self._client.get(EVENT.path(namespace), fieldSelector=selector)
            except (ApiError, ApiUnavailable):
                return  # what was known stays
        if self._store.waiting_pods().get(place) == wait:
            self._store.set_cause(place, cause_of(wait, msgspec.convert(answer, _Events).items))


def cause_of(wait: Wait, events: list[Event]) -> Problem | None:
    """Why a pod waits, from its warnings; None when they do not say, as while a large image is pulled."""
    if wait == "readiness":
        said = _last([event for event in events if event.reason == "Unhealthy" and "eadiness" in event.message])
        return Problem(1, "NotReady", f"a pod runs and is not ready: {said or 'no probe says why'}", is_lasting=False)
    said = _last([event for event in events if event.reason != "FailedScheduling"])
    return Problem(5, "PodCannotStart", f"the containers cannot be made: {said}") if said else None


def _last(events: list[Event]) -> str:
    """The newest message; one that only says that time has run out comes last."""

    def order(event: Event) -> tuple[bool, int]:
        return not event.message.startswith("Unable to attach or mount"), int(event.metadata.resource_version)

    return sentence(max(events, key=order).message) if events else ""
