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
_REBASE_S = 100 * _MEMORY_S
"""New work is counted in ever larger units instead of fading the old; they start again before floats end."""


class Usage:
    """Work lately begun, by tenant; old work fades."""

    def __init__(self) -> None:
        self._work: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By weight, and when it was noted last: whoever was longest without comes first."""
        self._total = 0.0
        self._base_s = 0.0

    def add(self, tenant: Tenant, work: float, now_s: float) -> None:
        """Work begins for `tenant`, or turns out to be so much more (or less) than what was added before."""
        if now_s - self._base_s > _REBASE_S:
            self._rebase(now_s)
        work *= math.exp((now_s - self._base_s) / _MEMORY_S) / tenant.weight
        self._work[tenant.name] = (self._work.get(tenant.name, (0.0, 0.0))[0] + work, now_s)
        self._work.move_to_end(tenant.name)
        self._total += work
        while now_s - next(iter(self._work.values()))[1] > _ACTIVE_S:
            self._total -= self._work.popitem(last=False)[1][0]

    def is_heavy(self, tenant: Tenant, *, times: float) -> bool:
        """Whether it has had over so many `times` what the other active tenants had on average, by weight; never so of
        one that is alone. It does not matter when this is asked, as all work fades alike."""
        own, _ = self._work.get(tenant.name, (0.0, 0.0))
        num_others = len(self._work) - 1
        return num_others > 0 and own > times * max(0.0, self._total - own) / num_others

    def _rebase(self, now_s: float) -> None:
        faded = math.exp((self._base_s - now_s) / _MEMORY_S)
        for name, (work, then_s) in self._work.items():
            self._work[name] = (work * faded, then_s)
        self._total = sum(work for work, _ in self._work.values())
        self._base_s = now_s
