"""How fast those who wait are let through. Pure: every call is told the time."""

import math
from dataclasses import dataclass

from penstock.router.flow.tenants import Tenant

_MEMORY_S = 10.0
"""Over which the speed is averaged."""
_FIRST_LEFT = 4
"""So many must have left before the speed is believed."""


@dataclass(slots=True)
class Speed:
    """Of one line: work per second, over the time in which somebody waited."""

    _work: float = 0.0
    _seconds: float = 0.0
    _num: int = 0
    _since: float | None = None
    """When somebody was last let through, or began to wait."""
    _is_first: bool = True

    def waits(self, now_s: float) -> None:
        """Somebody waits."""
        if self._since is None:
            self._since, self._is_first = now_s, True

    def left(self, work: float, now_s: float) -> None:
        """One that waited was let through. The first one's time tells of what the workers had before that."""
        passed_s = now_s - self._since if self._since is not None else 0.0
        self._since = now_s
        if self._is_first:
            self._is_first = False
            return
        kept = math.exp(-passed_s / _MEMORY_S)
        self._work = self._work * kept + work
        self._seconds = self._seconds * kept + passed_s
        self._num += 1

    def empty(self) -> None:
        """Nobody waits."""
        self._since = None

    def wait_s(self, work: float, now_s: float) -> float:
        """Until so much work is let through; 0 as long as the speed is unknown."""
        if self._num < _FIRST_LEFT or not self._work:
            return 0.0
        stalled_s = now_s - self._since if self._since is not None else 0.0
        return work * max(self._seconds, stalled_s) / self._work


class Speeds:
    """Of the queue, and of each tenant's own line: others that come later may still be before it."""

    def __init__(self) -> None:
        self._all = Speed()
        self._of: dict[str, Speed] = {}

    def waits(self, tenant: Tenant, now_s: float) -> None:
        """Somebody of `tenant` waits."""
        self._all.waits(now_s)
        self._of.setdefault(tenant.name, Speed()).waits(now_s)

    def left(self, tenant: Tenant, work: float, now_s: float) -> None:
        """One of `tenant` that waited was let through."""
        self._all.left(work, now_s)
        self._of[tenant.name].left(work, now_s)

    def empty(self, tenant: Tenant, *, nobody: bool) -> None:
        """Of `tenant` nobody waits any more, or `nobody` at all."""
        self._of[tenant.name].empty()
        if nobody:
            self._all.empty()

    def wait_s(self, tenant: Tenant, work: float, own: float, now_s: float) -> float:
        """Until `work` of all tenants is let through, of which `own` is of `tenant`."""
        of_tenant = self._of.get(tenant.name)
        return max(self._all.wait_s(work, now_s), of_tenant.wait_s(own, now_s) if of_tenant is not None else 0.0)
