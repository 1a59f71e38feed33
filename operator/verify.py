"""Asks each router whether KV blocks move between its workers: pods that are up prove nothing about transfers.

A router knows which transfers of real requests were verified; where none was lately it makes a tiny request itself
(router/probe.py). Two bad answers in a row count, since a pod may have ended just then.
"""

import asyncio
import math
import time

import aiohttp
import msgspec
from msgspec import Struct

from penstock.operator import names
from penstock.operator.config import OperatorConfig
from penstock.operator.observed import Verification
from penstock.operator.store import Key, Store

_SOON_S = 3.0
_ANSWER_S = 12.0
_PARALLEL = 32


class Pair(Struct):
    """One prefill and one decode worker, and what became of the last transfer between them."""

    prefill: str
    decode: str
    ok: bool
    message: str = ""


class Answer(Struct):
    """The router's answer to POST /probe."""

    pairs: list[Pair]


class Verifier:
    """Looks at every deployment whose pods are ready: soon while it is not verified, now and then afterwards."""

    def __init__(self, config: OperatorConfig, store: Store) -> None:
        self._config = config
        self._store = store
        self._due: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}

    async def run(self) -> None:
        """Until cancelled."""
        limit = asyncio.Semaphore(_PARALLEL)
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S, sock_connect=2.0)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            while True:
                now = time.monotonic()
                for key in [key for key in self._store.deployments if self._due.get(key, 0.0) <= now]:
                    if self._is_up(key):
                        self._due[key] = math.inf  # until it has answered: it may wait for its turn
                        group.create_task(self._ask(session, key, limit))
                    else:
                        self._store.set_verification(key, None)
                for key in [key for key in self._due if key not in self._store.deployments]:
                    del self._due[key]
                    self._failures.pop(key, None)
                await asyncio.sleep(0.5)

    def _is_up(self, key: Key) -> bool:
        roles = {pod.role for pod in self._store.observe(key).pods if pod.is_ready}
        return {"prefill", "decode", "router"} <= roles

    async def _ask(self, session: aiohttp.ClientSession, key: Key, limit: asyncio.Semaphore) -> None:
        namespace, name = key
        url = f"http://{name}.{namespace}.svc:{names.ROUTER_PORT}/probe"
        async with limit:
            try:
                async with session.post(url) as response:
                    data = await response.read()
                    verification = judge(msgspec.json.decode(data, type=Answer)) if response.status == 200 else None
            except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
                verification = None
        if verification is None:
            verification = Verification(None, "RouterSilent", "the router does not say whether KV blocks move")
        if verification.is_verified:
            self._failures.pop(key, None)
        else:
            self._failures[key] = self._failures.get(key, 0) + 1
        if verification.is_verified or self._failures[key] > 1:
            self._store.set_verification(key, verification)
        self._due[key] = time.monotonic() + (self._config.verify_s if verification.is_verified else _SOON_S)


def judge(answer: Answer) -> Verification:
    """What a router's answer says about the deployment."""
    failed = [pair for pair in answer.pairs if not pair.ok]
    if failed:
        first = failed[0]
        said = f"KV blocks do not move from {first.prefill} to {first.decode}: {first.message}"
        return Verification(False, "TransfersFail", said)
    if not answer.pairs:
        return Verification(None, "NoPair", "no prefill and decode worker of one revision are ready")
    return Verification(True, "BlocksMoved", "KV blocks move between prefill and decode workers")
