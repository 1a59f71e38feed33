"""The connection to one Redis, and whether it answers. The only module that imports the redis package."""

import asyncio
import logging
from typing import Any, NamedTuple, TypeAlias

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from penstock.errors import ConfigError
from penstock.router.metrics import Metrics

_PATIENCE_S = 0.5
"""For Redis' answer; a request gives up sooner."""

log = logging.getLogger(__name__)

Argument: TypeAlias = str | bytes | float


class _Call(NamedTuple):
    script: str
    key: str
    arguments: tuple[Argument, ...]
    answer: asyncio.Future[Any]


class Link:
    """Never raises for what Redis does. What is asked at the same time goes in one piece over one connection."""

    def __init__(self, url: str, metrics: Metrics) -> None:
        """Connects when first asked. Raises ConfigError for what is no URL of a Redis."""
        try:
            pool = ConnectionPool.from_url(
                url,
                socket_timeout=_PATIENCE_S,
                socket_connect_timeout=_PATIENCE_S,
                retry=Retry(NoBackoff(), 0),  # whoever asks knows better what to do than to wait
                protocol=2,
            )
        except ValueError:  # its text may hold the password
            raise ConfigError(
                "redis must be a URL such as redis://HOST:6379/0 or rediss://USER:PASSWORD@HOST"
            ) from None
        self._redis: Redis = Redis.from_pool(pool)
        self._metrics = metrics
        self._calls: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None
        self.is_up = False
        """Whether the last answer came. None came yet in the beginning."""
        self._told_lost = False

    async def run(self, script: str, key: str, *arguments: Argument, within_s: float = _PATIENCE_S) -> Any:
        """What the Lua `script` returns for `key`; None when that is not known in time.

        The text goes along with every call: a Redis that comes back empty knows no script by its digest.
        """
        future = asyncio.get_running_loop().create_future()
        self._calls.append(_Call(script, key, arguments, future))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="redis")
        try:
            async with asyncio.timeout(within_s):
                answer = await future
        except TimeoutError:
            self._lost(f"no answer within {within_s:g} s")
            return None
        if isinstance(answer, Exception):
            self._lost(str(answer) or type(answer).__name__)
            return None
        self._found()
        return answer

    async def close(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        await self._redis.aclose()

    async def _send(self) -> None:
        """All calls there are, until there are none."""
        try:
            while self._calls:
                calls, self._calls = self._calls, []
                for call, answer in zip(calls, await self._answers(calls), strict=True):
                    if not call.answer.done():  # who asked may have given up
                        call.answer.set_result(answer)
        finally:
            self._sending = None

    async def _answers(self, calls: list[_Call]) -> list[Any]:
        """To each call; an exception is one, too."""
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for call in calls:
                pipeline.eval(call.script, 1, call.key, *call.arguments)
            async with asyncio.timeout(_PATIENCE_S):
                return await pipeline.execute(raise_on_error=False)
        except Exception as error:  # whatever the client raises for what it reads: no request may fail of it
            return [error] * len(calls)

    def _lost(self, why: str) -> None:
        self.is_up = False
        self._metrics.redis_errors.inc()
        self._metrics.redis_ready.set(0)
        if not self._told_lost:
            log.warning("Redis is lost: until it is back this router knows quotas and load by its own view: %s", why)
        self._told_lost = True

    def _found(self) -> None:
        self.is_up = True
        self._metrics.redis_ready.set(1)
        if self._told_lost:
            log.warning("Redis answers again")
        self._told_lost = False
