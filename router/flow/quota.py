"""Quotas: how many requests and tokens a tenant may ask for per minute.

Token buckets (Turner 1986): each holds one minute's quota and refills steadily. Tokens are counted when a request
comes, its prompt and the answer that it may be expected to get, and set right when it has ended, so that the level may
fall below zero. Where the levels are kept is behind `Buckets`, so that several routers can share them.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias

from penstock.errors import RateLimited, RequestError, RetryableError
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.promises import EARLY_S, Promises

Kind: TypeAlias = Literal["requests", "tokens"]
Headers: TypeAlias = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Level:
    """A bucket after `take`."""

    taken: bool
    amount: float
    """What is left; may be below zero."""
    per_minute: int

    def seconds_to(self, amount: float) -> float:
        """Until it would hold so much if nobody took anything."""
        return max(0.0, (amount - self.amount) * 60 / self.per_minute)


class Buckets(Protocol):
    """Where the levels are kept."""

    async def take(self, name: str, per_minute: int, amount: float, least: float = -math.inf) -> Level:
        """Takes `amount` from the bucket `name` unless less than `least` would be left; a negative amount gives back.

        A new bucket is full, with a quota of `per_minute`; none ever holds more. Whoever asks first is told first.
        """
        ...


class LocalBuckets:
    """In the memory of one router."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}

    async def take(self, name: str, per_minute: int, amount: float, least: float = -math.inf) -> Level:
        now = self.level(name, per_minute)
        taken = now - amount >= least - SLACK
        left = min(per_minute, now - amount) if taken else now
        self.set(name, left)
        return Level(taken, left, per_minute)

    def level(self, name: str, per_minute: int) -> float:
        """What the bucket holds now."""
        now_s = self._clock()
        before, then_s = self._levels.get(name, (float(per_minute), now_s))
        return min(per_minute, before + (now_s - then_s) * per_minute / 60)

    def set(self, name: str, amount: float) -> None:
        """From now on it holds `amount`."""
        self._levels[name] = (amount, self._clock())


class Spending:
    """One request's, within whose `async with` it runs."""

    def __init__(self, quotas: "Quotas", arrival: Arrival, headers: Headers) -> None:
        self._quotas = quotas
        self._arrival = arrival
        self._headers = headers
        self._expected = 0
        self.used: int | None = None
        """Tokens used so far; None while no worker has begun."""

    async def __aenter__(self) -> Self:
        await self._quotas.take(self._arrival, "requests", 1, self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.used is None and isinstance(error, (RetryableError, asyncio.CancelledError)):
            await self._quotas.give_back(self._arrival, "requests", 1)
        await self._quotas.give_back(self._arrival, "tokens", self._expected - (self.used or 0))

    async def expect(self, num_tokens: int) -> None:
        """Counts the tokens that prompt and answer may have. Raises RateLimited, or RequestError when the quota of a
        whole minute is less."""
        tenant = self._arrival.tenant
        if tenant.tokens_per_minute is not None and num_tokens > tenant.tokens_per_minute:
            raise RequestError(
                f"prompt and answer may have {num_tokens} tokens, but the quota of {tenant.name} is "
                f"{tenant.tokens_per_minute} tokens per minute: ask for less",
                code="rate_limit_exceeded",
                status=429,
            )
        await self._quotas.take(self._arrival, "tokens", num_tokens, self._headers)
        self._expected = num_tokens


class Quotas:
    """Of all tenants."""

    def __init__(self, buckets: Buckets, clock: Callable[[], float] = time.monotonic) -> None:
        self._buckets = buckets
        self._clock = clock
        self._promises: dict[tuple[str, Kind], Promises] = {}

    def spending(self, arrival: Arrival, headers: Headers) -> Spending:
        """Counts one request when it is entered; adds to `headers` what is left. Raises RateLimited.

        In the end as many tokens count as were used, and nothing at all where no worker saw the request: it was refused
        for a while, or cancelled.
        """
        return Spending(self, arrival, headers)

    async def give_back(self, arrival: Arrival, kind: Kind, amount: int) -> None:
        """So much was not used."""
        per_minute = _per_minute(arrival, kind)
        if per_minute is not None and amount:
            await self._buckets.take(f"{arrival.tenant.name}/{kind}", per_minute, -amount)

    async def take(self, arrival: Arrival, kind: Kind, amount: int, headers: Headers) -> None:
        """Counts so much; adds to `headers` what is left. Raises RateLimited."""
        tenant, per_minute = arrival.tenant, _per_minute(arrival, kind)
        if per_minute is None:
            return
        now_s = self._clock()
        promises = self._promises.setdefault((tenant.name, kind), Promises())
        came_back = len(promises) > 0 and promises.redeem(arrival.digest(), now_s)
        # Who comes as promised does not stand behind what was promised to others, and may be a little early.
        least = -EARLY_S * per_minute / 60 if came_back else promises.amount(now_s)
        level = await self._buckets.take(f"{tenant.name}/{kind}", per_minute, amount, least)
        now_s = self._clock()
        ahead = promises.amount(now_s)  # others may have been refused while the buckets were asked
        was_promised = level.taken and not came_back and level.amount < ahead - SLACK
        if was_promised:
            level = Level(False, level.amount + amount, per_minute)
        headers += [
            (f"x-ratelimit-limit-{kind}".encode(), b"%d" % per_minute),
            (f"x-ratelimit-remaining-{kind}".encode(), b"%d" % max(0, int(level.amount))),
            (f"x-ratelimit-reset-{kind}".encode(), duration(level.seconds_to(per_minute)).encode()),
        ]
        if not level.taken:
            wait_s = promises.make(
                arrival.digest(), amount, level.seconds_to(amount + ahead), now_s, is_first_try=arrival.is_first_try
            )
            if was_promised:
                await self.give_back(arrival, kind, amount)
            raise RateLimited(
                f"{tenant.name} may ask for {per_minute} {kind} per minute; {max(0, int(level.amount))} are left of "
                f"them, and this takes {amount}",
                retry_after_s=wait_s,
            )


SLACK = 1e-6
"""For what is lost in adding fractions."""


def _per_minute(arrival: Arrival, kind: Kind) -> int | None:
    tenant = arrival.tenant
    return tenant.requests_per_minute if kind == "requests" else tenant.tokens_per_minute


def duration(seconds: float) -> str:
    """As OpenAI writes it: `6m0s`, `1.5s`, `20ms`."""
    milliseconds = math.ceil(1000 * seconds - SLACK)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    said = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{said}{milliseconds / 1000:g}s"
