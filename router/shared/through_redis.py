"""One router among several."""

from penstock.router.flow.quota import LocalBuckets
from penstock.router.metrics import Metrics
from penstock.router.placement.books import Books
from penstock.router.shared.buckets import SharedBuckets
from penstock.router.shared.exchange import Exchange
from penstock.router.shared.link import Link
from penstock.router.shared.replicas import Alone


class ThroughRedis(Alone):
    """Shares quotas and what is in flight with all routers of the same `prefix`."""

    def __init__(self, url: str, prefix: str, metrics: Metrics) -> None:
        """Raises ConfigError for what is no URL of a Redis."""
        self._link = Link(url, metrics)
        self._exchange = Exchange(self._link, prefix)
        self.buckets = SharedBuckets(self._link, prefix, LocalBuckets())

    async def share(self, books: Books) -> None:
        await self._exchange.run(books)

    async def close(self) -> None:
        await self._exchange.leave()
        await self._link.close()
