"""Quotas that hold over all routers: the buckets of flow/quota.py, kept in Redis.

This router remembers every level that it saw. So when Redis is lost it goes on from there by itself, and a Redis that
comes back empty is told, instead of granting everybody a fresh minute.
"""

import math

from penstock.router.flow.quota import SLACK, Level, LocalBuckets
from penstock.router.shared.link import Link

ANSWER_S = 0.05
"""A request waits no longer than this for Redis, and the next ones not at all until it is back. Answers come in less
than a millisecond; but an event loop that is busy for some is no reason to take Redis for lost."""

_SCRIPT = """
local per_minute, amount, least = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local kept = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = tonumber(ARGV[4])
if kept[1] then
  level = kept[1] + math.max(0, now - kept[2]) * per_minute / 60
end
level = math.min(per_minute, level)
local taken = level - amount >= least
if taken then
  level = math.min(per_minute, level - amount)
end
redis.call('HSET', KEYS[1], 'level', string.format('%.17g', level), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], 1000 + math.ceil((per_minute - level) * 60000 / per_minute))
return {taken and 1 or 0, string.format('%.17g', level)}
"""
"""A bucket is forgotten when it must be full again: a new one is."""
_LEAST = -1e300
"""For minus infinity, which Lua cannot read on every platform."""


class SharedBuckets:
    """Buckets in Redis, and in this router's memory while that is lost."""

    def __init__(self, link: Link, prefix: str, local: LocalBuckets) -> None:
        self._link = link
        self._prefix = prefix
        self._local = local

    async def take(self, name: str, per_minute: int, amount: float, least: float = -math.inf) -> Level:
        """As Buckets.take, within ANSWER_S."""
        if self._link.is_up:
            known = self._local.level(name, per_minute)
            arguments = (per_minute, amount, max(_LEAST, least - SLACK), known)
            answer = await self._link.run(_SCRIPT, f"{self._prefix}:quota:{name}", *arguments, within_s=ANSWER_S)
            if answer is not None:
                level = Level(bool(answer[0]), float(answer[1]), per_minute)
                self._local.set(name, level.amount)
                return level
        return await self._local.take(name, per_minute, amount, least)
