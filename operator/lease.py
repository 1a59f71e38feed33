"""Leader election by a Lease: at most one operator acts.

`kubernetes.aio.leaderelection` does not work in 37.0.2 (its create is refused by its own types, and it dies when the
API server is away). 10 s instead of client-go's 15 s, so that a standby acts within 12 s of a leader's death.
"""

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime
from typing import Any

from penstock.operator.client import ApiError, ApiUnavailable, Client
from penstock.operator.kinds import LEASE

log = logging.getLogger(__name__)

LEASE_S = 10
RENEW_S = 2.0
GIVE_UP_S = 8.0
"""A leader that could not renew for so long stops at once: 2 s later another one may begin."""
POLL_S = 0.5
LONG_AGO_S = 30.0


class Lost(Exception):
    """This process leads no longer."""


class Leadership:
    """Of one process, under the name `holder`."""

    def __init__(self, client: Client, namespace: str, name: str, holder: str) -> None:
        self._client = client
        self._namespace, self._name, self._holder = namespace, name, holder
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = 0.0
        self._trouble = ""
        """What the API server last refused the Lease with."""

    async def acquire(self) -> None:
        """Returns once this process leads."""
        while not await self._try():  # noqa: ASYNC110 - the news is in the API server
            await asyncio.sleep(POLL_S)
        log.info("%s leads", self._holder)

    async def keep(self) -> None:
        """Renews until it cannot; never returns. Raises Lost."""
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(RENEW_S)
            began = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + GIVE_UP_S - (began - renewed)):
                    if await self._try():
                        renewed = began
            if self._seen[0] not in ("", self._holder):
                raise Lost(f"{self._seen[0]} leads now")
            if time.monotonic() - renewed >= GIVE_UP_S:
                raise Lost(f"the lease could not be renewed for {GIVE_UP_S:.0f} s")

    async def release(self) -> None:
        """Lets a standby begin at once."""
        with contextlib.suppress(ApiError, ApiUnavailable):
            lease = await self._client.get(self._path())
            if lease["spec"].get("holderIdentity") == self._holder:
                lease["spec"] |= {"holderIdentity": "", "renewTime": _now()}
                await self._client.replace(self._path(), lease)

    async def _try(self) -> bool:
        """One attempt to get or renew the lease."""
        try:
            lease = await self._client.get(self._path())
        except ApiUnavailable:
            return False
        except ApiError as error:
            if error.status == 404:
                return await self._create()
            if str(error) != self._trouble:  # else twice a second
                self._trouble = str(error)
                log.error("nobody can lead: %s", error)
            return False
        self._trouble = ""
        spec = lease["spec"]
        held_by, renewed = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
        if (held_by, renewed) != self._seen:
            self._seen, self._seen_at = (held_by, renewed), time.monotonic()
        # Whether it has run out is measured by this process's own clock, from when the lease last changed.
        is_over = not held_by or time.monotonic() - self._seen_at > LEASE_S or _is_long_ago(renewed)
        if held_by != self._holder and not is_over:
            return False
        lease["spec"] = spec | self._spec(spec if held_by == self._holder else {}, spec.get("leaseTransitions", 0))
        return await self._replace(lease)

    async def _create(self) -> bool:
        lease = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec({}, 0),
        }
        try:
            await self._client.create(LEASE.path(self._namespace), lease, manager="penstock")
        except (ApiError, ApiUnavailable) as error:
            log.warning("no lease: %s", error)
            return False
        return True

    async def _replace(self, lease: dict[str, Any]) -> bool:
        """With the version that was read: of two who try at the same time one gets a conflict."""
        try:
            answer = await self._client.replace(self._path(), lease)
        except (ApiError, ApiUnavailable):
            return False
        self._seen, self._seen_at = (self._holder, answer["spec"]["renewTime"]), time.monotonic()
        return True

    def _spec(self, mine: dict[str, Any], transitions: int) -> dict[str, Any]:
        now = _now()
        return {
            "holderIdentity": self._holder,
            "leaseDurationSeconds": LEASE_S,
            "acquireTime": mine.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": transitions if mine else transitions + 1,
        }

    def _path(self) -> str:
        return LEASE.path(self._namespace, self._name)


def _is_long_ago(renewed: str) -> bool:
    """Whether a lease ran out so long ago that no two clocks differ by as much: after an outage of the API server an
    operator that was restarted meanwhile need not watch the lease of its former life for 10 s."""
    return bool(renewed) and (datetime.now(UTC) - datetime.fromisoformat(renewed)).total_seconds() > LONG_AGO_S


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
