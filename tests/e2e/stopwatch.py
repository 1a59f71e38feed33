"""Seconds for the bounds of tests, without those that the host of this virtual machine took from it."""

import time

import psutil


def stolen_s() -> float:
    """Processor time that other virtual machines had while this one wanted it, over all processors since boot; 0 where
    the system does not say (proc(5), "steal")."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


class Stopwatch:
    """Runs from now on."""

    def __init__(self) -> None:
        self.began, self._stolen_s = time.monotonic(), stolen_s()

    @property
    def stolen_s(self) -> float:
        """What was taken since."""
        return stolen_s() - self._stolen_s

    @property
    def elapsed_s(self) -> float:
        """What this machine had: a product cannot be quicker than the machine runs."""
        return time.monotonic() - self.began - self.stolen_s
