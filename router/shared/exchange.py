"""Tells the other routers what this one has in flight on each worker, and hears the same of them.

All routers of a deployment keep one hash in Redis: a field per router, with the time and its totals. One script, one
round trip: write mine, read the others', drop those that have been silent. All times are Redis' own, so clocks of
routers may differ.
"""

import asyncio
import logging
import secrets

import msgspec

from penstock.router.placement.books import Books
from penstock.router.placement.totals import NOTHING, Totals
from penstock.router.shared.link import Link

PERIOD_S = 0.05
"""Between two looks: about as long as a request takes to appear in what its worker reports."""
SILENT_S = 1.0
"""A router that was not heard for so long is gone, and its streams with it."""
_LONGEST_PAUSE_S = 2.0
"""Between two tries while Redis is lost."""

_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local silent = tonumber(ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d ', now) .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], silent)
local others = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if all[i] ~= ARGV[1] then
    local at, totals = string.match(all[i + 1], '^(%d+) (.*)$')
    if at and math.abs(now - at) <= silent then
      others[#others + 1] = totals
    else
      redis.call('HDEL', KEYS[1], all[i])
    end
  end
end
return others
"""
_LEAVE = "return redis.call('HDEL', KEYS[1], ARGV[1])"

log = logging.getLogger(__name__)


class Exchange:
    """One per router."""

    def __init__(self, link: Link, prefix: str) -> None:
        """`prefix` is the same on all routers of a deployment."""
        self._link = link
        self._key = f"{prefix}:routers"
        self._name = secrets.token_hex(8)
        self._decoder = msgspec.msgpack.Decoder(dict[str, Totals])
        self._heard_at = 0.0
        self._told_nonsense = False

    async def run(self, books: Books) -> None:
        """For ever."""
        pause_s = PERIOD_S
        while True:
            pause_s = PERIOD_S if await self.look(books) else min(_LONGEST_PAUSE_S, 2 * pause_s)
            await asyncio.sleep(pause_s)

    async def look(self, books: Books) -> bool:
        """One round trip. Whether Redis answered; if it has not for long, the others' work is forgotten."""
        now = asyncio.get_running_loop().time
        mine = msgspec.msgpack.encode(books.totals())
        answer = await self._link.run(_SCRIPT, self._key, self._name, mine, round(1000 * SILENT_S))
        if answer is not None:
            books.others(self._sum(answer))
            self._heard_at = now()
        elif now() - self._heard_at > SILENT_S:
            books.others({})
        return answer is not None

    async def leave(self) -> None:
        """The others need not wait until this router is found silent; nor does this one for a Redis that is lost."""
        if self._link.is_up:
            await self._link.run(_LEAVE, self._key, self._name)

    def _sum(self, answer: list[bytes]) -> dict[str, Totals]:
        """Of all other routers, by worker."""
        sums: dict[str, Totals] = {}
        for payload in answer:
            try:
                totals = self._decoder.decode(payload)
            except msgspec.MsgspecError as error:
                if not self._told_nonsense:
                    log.warning("what another router says in Redis cannot be read, is it of another release? %s", error)
                self._told_nonsense = True
                continue
            for url, booked in totals.items():
                sums[url] = sums.get(url, NOTHING) + booked
        return sums
