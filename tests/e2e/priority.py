"""Keeps what else runs on this machine from deciding tests that measure seconds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NICE = -10
_AUTOGROUP = Path("/proc/self/autogroup")
"""Linux shares the processor between sessions first (man 7 sched): there, niceness is the session's."""


@contextmanager
def ahead_of_others() -> Iterator[None]:
    """This process and all it starts come before others, where it may ask for that (root); else nothing happens."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    group = _group_nice()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(before, _NICE))
        if group is not None:
            _AUTOGROUP.write_text(str(min(group, _NICE)))
    try:
        yield
    finally:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)
            if group is not None:
                _AUTOGROUP.write_text(str(group))


def _group_nice() -> int | None:
    """From "/autogroup-25 nice 0"; None where there is no such thing."""
    try:
        return int(_AUTOGROUP.read_text().split()[-1])
    except (OSError, IndexError):
        return None
