"""Who is next among those who wait: between tenants whoever has had least for its weight, within one by priority.

The virtual token counter of Sheng et al. 2024, "Fairness in Serving Large Language Models" (OSDI), section 4: each
tenant has a counter of the work done for it, and the tenant with the lowest is next; one that comes anew is lifted to
the lowest counter of those who wait, so that nobody saves up by staying away. Work counts prompt tokens that are not
cached (so that sharing a prefix pays, as in Cao et al. 2025, "Locality-aware Fair Scheduling in LLM Serving") and
tokens of answer twice. It is charged by expectation when a request leaves, and set right when it has ended. Pure.
"""

import bisect
import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from penstock.router.flow.tenants import Tenant

OUTPUT_WEIGHT = 2.0
"""Work of a token of answer, in prompt tokens: the paper's weights (1 and 2), after usual prices."""

T = TypeVar("T")


def work_of(prompt_tokens: float, output_tokens: float) -> float:
    """Of a request, in tokens of prompt."""
    return prompt_tokens + OUTPUT_WEIGHT * output_tokens


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """One who waits."""

    tenant: Tenant
    item: T
    work: float
    tokens: int
    """Of its prompt, as long as it is: what it takes of memory."""
    rank: tuple[int, int]
    """Priority, and number of arrival."""
    gone: bool = False

    def __lt__(self, other: "Entry[T]") -> bool:
        return self.rank < other.rank


@dataclass(slots=True)
class _Line(Generic[T]):
    """One tenant's."""

    tenant: Tenant
    counter: float = 0.0
    """Work done for it, by its weight."""
    waiting: list[Entry[T]] = field(default_factory=list)
    """In order."""
    work: float = 0.0
    """Of those who wait."""
    tokens: int = 0
    """Of their prompts."""


class FairQueue(Generic[T]):
    """Those who wait, of all tenants."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        """Of all tenants that ever came: there are no more than keys."""
        self._waiting: dict[str, _Line[T]] = {}
        """Those in which somebody waits. What is asked often goes through these only."""
        self._num = 0
        self._work = 0.0
        self._tokens = 0
        self._numbers = itertools.count()
        self._clock = 0.0
        """The counter that whoever was last let through began from."""

    def __len__(self) -> int:
        return self._num

    @property
    def work(self) -> float:
        """Of all who wait."""
        return self._work

    @property
    def tokens(self) -> int:
        """Of the prompts of all who wait."""
        return self._tokens

    def waiting(self, tenant: Tenant) -> int:
        """How many requests of `tenant` wait."""
        line = self._lines.get(tenant.name)
        return len(line.waiting) if line is not None else 0

    def later(self, tenant: Tenant, priority: int) -> int:
        """How many of them go behind one of this priority."""
        line = self._waiting.get(tenant.name)
        if line is None or line.waiting[-1].rank[0] <= priority:
            return 0
        return len(line.waiting) - bisect.bisect(line.waiting, (priority, math.inf), key=lambda each: each.rank)

    def tenants(self) -> Iterator[Tenant]:
        """Of whom somebody waits."""
        return (line.tenant for line in self._waiting.values())

    def work_of(self, tenant: Tenant) -> float:
        """Of the requests of `tenant` that wait."""
        line = self._lines.get(tenant.name)
        return line.work if line is not None else 0.0

    def push(self, tenant: Tenant, item: T, work: float, priority: int = 0, tokens: int = 0) -> Entry[T]:
        """`item` waits from now on, with so many tokens of prompt."""
        line = self._line(tenant)
        if not line.waiting:
            line.counter = self._lifted(line)
        entry = Entry(tenant, item, work, tokens, (priority, next(self._numbers)))
        bisect.insort(line.waiting, entry)
        self._waiting[tenant.name] = line
        line.work += work
        line.tokens += tokens
        self._work += work
        self._tokens += tokens
        self._num += 1
        return entry

    def first(self, most: int) -> Iterator[Entry[T]]:
        """At most so many: the first of each tenant, fairest first, then the second of each, and so on.

        Stop when the queue has changed.
        """
        lines = heapq.nsmallest(most, self._waiting.values(), key=_rank)
        left = most
        for depth in range(most):
            for line in lines:
                if depth < len(line.waiting) and left:
                    left -= 1
                    yield line.waiting[depth]

    def remove(self, entry: Entry[T]) -> None:
        """It no longer waits; again and again does no harm."""
        if not entry.gone:
            entry.gone = True
            line = self._lines[entry.tenant.name]
            del line.waiting[bisect.bisect_left(line.waiting, entry)]
            line.work -= entry.work
            line.tokens -= entry.tokens
            self._work -= entry.work
            self._tokens -= entry.tokens
            self._num -= 1
            if not line.waiting:
                line.work = 0.0  # sums of fractions need not end there
                del self._waiting[entry.tenant.name]
            if not self._num:
                self._work = 0.0

    def charge(self, tenant: Tenant, work: float) -> None:
        """Work begins for `tenant`, also when nobody waits."""
        line = self._line(tenant)
        start = line.counter if line.waiting else self._lifted(line)
        self._clock = max(self._clock, start)
        line.counter = start + work / tenant.weight

    def correct(self, tenant: Tenant, work: float) -> None:
        """So much more (or less) work was done than was charged."""
        line = self._lines.get(tenant.name)
        if line is not None:
            line.counter += work / tenant.weight

    def ahead_of(self, tenant: Tenant, expected: dict[str, float]) -> float:
        """Work that is done before the next request of `tenant`; `expected` is what is to come beside what waits, by
        tenant."""
        mine = self._line(tenant)
        own = mine.work + expected.get(tenant.name, 0.0)
        start = (mine.counter if mine.waiting else self._lifted(mine)) + own / tenant.weight
        ahead = own
        for name in dict.fromkeys((*self._waiting, *expected)):
            line = self._lines.get(name)
            if line is None or line is mine or line.tenant.priority > tenant.priority:
                continue
            work = line.work + expected.get(name, 0.0)
            if line.tenant.priority < tenant.priority:
                ahead += work
            else:
                ahead += min(work, max(0.0, start - line.counter) * line.tenant.weight)
        return ahead

    def surplus(self, *, in_tokens: bool = False, spare: Callable[[T], bool] = lambda _: False) -> Entry[T] | None:
        """Who makes room when there is none: of the tenant with most work waiting for its weight the last in line, or
        of that with most tokens the longest prompt; whoever is to be spared only when nobody else is in that line."""
        if not self._waiting:
            return None
        line = max(
            self._waiting.values(), key=lambda line: (line.tokens if in_tokens else line.work) / line.tenant.weight
        )
        others = (entry for entry in reversed(line.waiting) if not spare(entry.item))
        if in_tokens:
            return max(others, key=lambda entry: entry.tokens, default=line.waiting[-1])
        return next(others, line.waiting[-1])

    def _line(self, tenant: Tenant) -> _Line[T]:
        line = self._lines.get(tenant.name)
        if line is None:
            line = self._lines[tenant.name] = _Line(tenant, self._clock)
        line.tenant = tenant  # its weight may have changed
        return line

    def _lifted(self, line: _Line[T]) -> float:
        """Where a tenant of whom nobody waits begins."""
        return max(line.counter, min((other.counter for other in self._waiting.values()), default=self._clock))


def _rank(line: _Line[T]) -> tuple[int, float, int]:
    """Who comes first; at a tie, as when a tenant has just been lifted, who wants least."""
    return line.tenant.priority, line.counter, len(line.waiting)
