"""Asks every router whether its predictions hold: one that places by load alone looks as well as ever from outside.

Each has learned by itself from the requests that it placed, so one of several may be off: not their Service is asked,
but every pod. Its `/ready`, which the kubelet asks every second, says it, and costs nothing. (To write it into its own
pod or an Event, each router would need a right to write to the API server.)
"""

import asyncio
from contextlib import suppress

import aiohttp
import msgspec
from msgspec import Struct

from penstock.address import bracketed
from penstock.operator import names
from penstock.operator.store import Store

PAUSE_S = 20.0
_ANSWER_S = 3.0
_PARALLEL = 32


class Answer(Struct):
    """What is read of a router's answer to GET /ready."""

    drift: list[str]


class Predictions:
    """A router that is ready and does not answer is taken to say what it said before."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._said: dict[str, list[str]] = {}
        """What each router said last, by its address."""
        self._limit = asyncio.Semaphore(_PARALLEL)

    async def run(self) -> None:
        """Until cancelled."""
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                routers = self._store.ready_routers()
                addresses = {address for each in routers.values() for address in each}
                self._said = {address: said for address, said in self._said.items() if address in addresses}
                async with asyncio.TaskGroup() as group:
                    for address in addresses:
                        group.create_task(self._ask(session, address))
                for key in list(self._store.deployments):
                    said = [self._said[address] for address in routers.get(key, ()) if address in self._said]
                    self._store.set_drift(key, tuple(sorted(set().union(*said))) if said else None)
                await asyncio.sleep(PAUSE_S)

    async def _ask(self, session: aiohttp.ClientSession, address: str) -> None:
        async with self._limit:
            with suppress(aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
                async with session.get(f"http://{bracketed(address)}:{names.ROUTER_PORT}/ready") as response:
                    self._said[address] = msgspec.json.decode(await response.read(), type=Answer).drift
