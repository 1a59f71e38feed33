"""KV on its way: each worker reads and is read at its link's speed, one transfer after the other.

A transfer takes both ends for its whole length. Real adapters interleave; the bytes per second are the same.
"""

from penstock.simulator.clock import Action, Clock, Event


class Port:
    """One worker's end of the network: when each direction is free again."""

    __slots__ = ("bytes_s", "free_in_s", "free_out_s", "latency_s")

    def __init__(self, bytes_s: float, latency_s: float) -> None:
        self.bytes_s = bytes_s
        self.latency_s = latency_s
        self.free_in_s = 0.0
        self.free_out_s = 0.0


def transfer(clock: Clock, source: Port, target: Port, num_bytes: int, done: Action) -> Event:
    """Moves `num_bytes` and then does `done`."""
    begin_s = max(clock.now_s, source.free_out_s, target.free_in_s)
    end_s = begin_s + num_bytes / min(source.bytes_s, target.bytes_s)
    source.free_out_s = target.free_in_s = end_s
    return clock.at(end_s + max(source.latency_s, target.latency_s), done)
