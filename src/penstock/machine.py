"""What this process may use of its machine: a container has less than the machine has.

Limits are read where a container sees its own cgroup, in version 2 or 1 of the interface (man 7 cgroups).
"""

import math
import os
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores by affinity and quota, at least 1; half a core counts as one."""
    cores = len(os.sched_getaffinity(0))
    quota, period = _read(cgroup / "cpu.max"), ""
    if quota:
        quota, _, period = quota.partition(" ")
    else:
        quota, period = _read(cgroup / "cpu/cpu.cfs_quota_us"), _read(cgroup / "cpu/cpu.cfs_period_us")
    if quota.isdecimal() and period.isdecimal():  # neither "max" nor -1
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def free_memory_bytes(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int:
    """Memory that can be allocated without swapping and without being killed for it."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, usage, folder in (
        ("memory.max", "memory.current", cgroup),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", cgroup / "memory"),
    ):
        if (most := _read(folder / limit)).isdecimal():
            free = min(free, int(most) - int(_read(folder / usage)) + _reclaimable_bytes(folder / "memory.stat"))
    return max(0, free)


def _reclaimable_bytes(stat: Path) -> int:
    """The page cache, which counts as used and is given up first."""
    for line in _read(stat).splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _read(file: Path) -> str:
    """Empty where there is no such file."""
    with suppress(OSError):
        return file.read_text().strip()
    return ""
