"""Seconds for the bounds of tests, without those that the host of this virtual machine took from it."""

import time

import psutil


def stolen_s() -> list[float]:
    """Per processor, the time since boot that other virtual machines had while this one wanted it; 0 where the system
    does not say (proc(5), "steal")."""
    return [float(getattr(times, "steal", 0.0)) for times in psutil.cpu_times(percpu=True)]


class Stopwatch:
    """Runs from now on."""

    def __init__(self) -> None:
        self.began, self._stolen_s = time.monotonic(), stolen_s()

    @property
    def stolen_s(self) -> float:
        """What was taken since from the processor that lost most: never more than has passed."""
        return max(now - before for before, now in zip(self._stolen_s, stolen_s(), strict=True))

    @property
    def elapsed_s(self) -> float:
        """What this machine had: a product cannot be quicker than the machine runs."""
        return time.monotonic() - self.began - self.stolen_s
