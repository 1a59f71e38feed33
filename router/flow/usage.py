"""How much each tenant has had of late: who has had more than the others goes behind them, also on the workers.

Fair order in the queue is not enough. What is with a worker is beyond it, and a tenant that fills every gap as soon as
there is one would still have all others wait behind its work there. Pure.
"""

import math
from collections import OrderedDict

from penstock.router.flow.tenants import Tenant

_MEMORY_S = 10.0
"""Over which work is averaged."""
_ACTIVE_S = 60.0
"""A tenant that had something within so long is active."""


class Usage:
    """Work lately begun, by tenant; old work fades."""

    def __init__(self) -> None:
        self._work: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By weight, and when it was noted: whoever was longest without comes first."""
        self._total = 0.0
        self._at_s = 0.0

    def add(self, tenant: Tenant, work: float, now_s: float) -> None:
        """Work begins for `tenant`, or turns out to be so much more (or less) than what was added before."""
        work /= tenant.weight
        self._total = self._faded(self._total, self._at_s, now_s) + work
        self._at_s = now_s
        self._work[tenant.name] = (self._of(tenant, now_s) + work, now_s)
        self._work.move_to_end(tenant.name)
        while now_s - next(iter(self._work.values()))[1] > _ACTIVE_S:
            self._work.popitem(last=False)

    def is_heavy(self, tenant: Tenant, now_s: float, *, times: float) -> bool:
        """Whether it has had over so many `times` what the other active tenants had on average, by weight; never so of
        one that is alone."""
        if tenant.name not in self._work:
            return False
        own = self._of(tenant, now_s)
        num_others = len(self._work) - 1
        if not num_others:
            return False
        others = max(0.0, self._faded(self._total, self._at_s, now_s) - own)
        return own > times * others / num_others

    def _of(self, tenant: Tenant, now_s: float) -> float:
        work, then_s = self._work.get(tenant.name, (0.0, now_s))
        return self._faded(work, then_s, now_s)

    @staticmethod
    def _faded(work: float, then_s: float, now_s: float) -> float:
        return work * math.exp((then_s - now_s) / _MEMORY_S)
