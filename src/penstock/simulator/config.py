"""The flags of `penstock plan`. Imports no other module of the simulator, so that --help needs nothing."""

from dataclasses import dataclass
from math import inf

from penstock.config import option
from penstock.errors import ConfigError


@dataclass(frozen=True)
class PlanConfig:
    """What is to be served, how well, and on what."""

    trace: str
    ttft: float = option(5.0, "Time to first token that a good answer keeps.", unit="seconds")
    tpot: float = option(0.05, "Mean time per output token after the first that a good answer keeps.", unit="seconds")
    good: float = option(90.0, "Share of all requests that must get a good answer.", unit="percent")
    prefill: str = option("h100x8-70b", "Kinds of prefill workers to try: names or files, separated by commas.")
    decode: str = option("h100x8-70b", "Kinds of decode workers to try: names or files, separated by commas.")
    speed: float = option(1.0, "Replay the trace so many times as fast: 2 is twice the load.", unit="times")
    requests: int = option(2000, "Replay the first so many requests of the trace; 0: all.", unit="requests")
    max_workers: int = option(32, "Give up beyond so many workers of one role.", unit="workers")

    def __post_init__(self) -> None:
        for flag, is_sensible, wanted in (
            ("ttft", 0 < self.ttft < inf, "more than 0, and finite"),
            ("tpot", 0 < self.tpot < inf, "more than 0, and finite"),
            ("good", 0 < self.good <= 100, "more than 0, and at most 100"),
            ("speed", 1e-6 <= self.speed <= 1e6, "from 1e-6 to 1e6"),
            ("requests", self.requests >= 0, "0 or more"),
            ("max_workers", self.max_workers >= 1, "1 or more"),
        ):
            if not is_sensible:
                raise ConfigError(f"--{flag.replace('_', '-')} {getattr(self, flag)} must be {wanted}")
