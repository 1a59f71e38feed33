"""What the services of one router see of the others: nothing, without Redis."""

import importlib.util

from penstock.errors import ConfigError
from penstock.router.config import RouterConfig
from penstock.router.flow.quota import Buckets, LocalBuckets
from penstock.router.metrics import Metrics
from penstock.router.placement.books import Books


class Alone:
    """A router that shares nothing."""

    def __init__(self) -> None:
        self.buckets: Buckets = LocalBuckets()

    async def share(self, books: Books) -> None:
        """Tells the others what is booked, and books what they tell, until cancelled."""

    async def close(self) -> None:
        """This router leaves."""


def open_replicas(config: RouterConfig, metrics: Metrics) -> Alone:
    """As `config` asks. Raises ConfigError."""
    if not config.redis:
        return Alone()
    if importlib.util.find_spec("redis") is None:
        raise ConfigError(
            "--redis needs the extra redis, which is not installed; in a clone of Penstock run: "
            "pip install --constraint constraints.txt --editable '.[redis]'"
        )
    from penstock.router.shared.through_redis import ThroughRedis

    return ThroughRedis(config.redis, config.redis_prefix, metrics)
