"""What `ps` shows as a process's command: a fork says which worker it is, not what it was forked from."""

import ctypes
from contextlib import suppress
from pathlib import Path

_ARG_START, _ARG_END = 45, 46
"""Fields of /proc/self/stat, counted from the state on (man 5 proc_pid_stat: 48 and 49)."""


def title() -> str:
    """The command as it is shown now."""
    return " ".join(Path("/proc/self/cmdline").read_text(errors="replace").split("\0")).rstrip()


def set_title(said: str) -> None:
    """Writes over the arguments, which Python copied at its start; what does not fit is cut off."""
    with suppress(OSError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        begin, size = int(fields[_ARG_START]), int(fields[_ARG_END]) - int(fields[_ARG_START])
        if begin and size > 0:  # 0 where the kernel does not tell
            ctypes.memmove(begin, said.encode()[: size - 1].ljust(size, b"\0"), size)
