"""KV blocks move between workers here: tickets are redeemed by one-sided reads, and the fence proves them good.

`Puller` redeems tickets on its own thread, through a `Transport`: `nixl` (the default) or `tcp` (the fallback).
"""

from penstock.engine.transfer.pull import Counters, Event, Pull, PullFailed, PullVerified, QuarantineReleased
from penstock.engine.transfer.puller import Puller
from penstock.engine.transfer.transport import Read, Regions, Transport, make_transport

__all__ = [
    "Counters",
    "Event",
    "Pull",
    "PullFailed",
    "PullVerified",
    "Puller",
    "QuarantineReleased",
    "Read",
    "Regions",
    "Transport",
    "make_transport",
]
