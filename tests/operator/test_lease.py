"""Leader election, against an API server in memory that knows Leases: who leads, and when another one may."""

import asyncio
import copy
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from penstock.operator import lease as module
from penstock.operator.client import ApiError, ApiUnavailable, Client
from penstock.operator.lease import Leadership, Lost


class Leases:
    """One Lease; replacing it with an old version is a conflict."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.is_up = True
        self._versions = itertools.count(1)

    async def get(self, path: str) -> dict[str, Any]:  # noqa: ARG002 - the client's signature
        self._check()
        if self.lease is None:
            raise ApiError("not found", status=404)
        return copy.deepcopy(self.lease)

    async def create(self, path: str, lease: dict[str, Any], *, manager: str) -> dict[str, Any]:  # noqa: ARG002
        self._check()
        if self.lease is not None:
            raise ApiError("exists", status=409)
        return self._store(lease)

    async def replace(self, path: str, lease: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        self._check()
        assert self.lease is not None
        if lease["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError("conflict", status=409)
        return self._store(lease)

    def _store(self, lease: dict[str, Any]) -> dict[str, Any]:
        self.lease = copy.deepcopy(lease)
        self.lease["metadata"]["resourceVersion"] = str(next(self._versions))
        return copy.deepcopy(self.lease)

    def _check(self) -> None:
        if not self.is_up:
            raise ApiUnavailable("no answer")


@pytest.fixture
def leases() -> Leases:
    return Leases()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twentieth of the real times."""
    for name in ("LEASE_S", "RENEW_S", "GIVE_UP_S", "POLL_S"):
        monkeypatch.setattr(module, name, getattr(module, name) / 20)


def candidate(leases: Leases, name: str) -> Leadership:
    return Leadership(cast("Client", leases), "ns", "lease", name)


async def soon(wanted: Any) -> Any:
    async with asyncio.timeout(5):
        return await wanted


def test_one_leads_and_the_other_waits_until_it_dies(leases: Leases) -> None:
    async def scenario() -> None:
        first, second = candidate(leases, "a"), candidate(leases, "b")
        await soon(first.acquire())
        keeping = asyncio.create_task(first.keep())
        waiting = asyncio.create_task(second.acquire())
        done, _ = await asyncio.wait([waiting], timeout=1.0)
        assert not done, "two leaders"
        keeping.cancel()
        await soon(waiting)
        assert leases.lease is not None
        assert leases.lease["spec"]["holderIdentity"] == "b"
        assert leases.lease["spec"]["leaseTransitions"] == 2

    asyncio.run(scenario())


def test_a_leader_that_cannot_renew_is_lost(leases: Leases) -> None:
    async def scenario() -> None:
        leader = candidate(leases, "a")
        await soon(leader.acquire())
        leases.is_up = False
        with pytest.raises(Lost, match="could not be renewed"):
            await soon(leader.keep())

    asyncio.run(scenario())


def test_a_leader_that_was_replaced_is_lost(leases: Leases) -> None:
    async def scenario() -> None:
        leader = candidate(leases, "a")
        await soon(leader.acquire())
        assert leases.lease is not None
        leases.lease["spec"]["holderIdentity"] = "b"
        with pytest.raises(Lost, match="b leads now"):
            await soon(leader.keep())

    asyncio.run(scenario())


def test_a_released_lease_is_taken_at_once(leases: Leases) -> None:
    async def scenario() -> None:
        first, second = candidate(leases, "a"), candidate(leases, "b")
        await soon(first.acquire())
        await first.release()
        async with asyncio.timeout(0.2):
            await second.acquire()

    asyncio.run(scenario())


def test_a_lease_of_long_ago_is_taken_at_once(leases: Leases) -> None:
    async def scenario() -> None:
        await soon(candidate(leases, "a").acquire())
        assert leases.lease is not None
        old = datetime.now(UTC) - timedelta(seconds=60)
        leases.lease["spec"]["renewTime"] = old.isoformat().replace("+00:00", "Z")
        async with asyncio.timeout(0.2):
            await candidate(leases, "b").acquire()

    asyncio.run(scenario())
