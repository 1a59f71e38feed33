"""Progress for a log: one line now and then, where a terminal would show a moving bar."""

import io
import sys
import time
from collections.abc import Callable
from typing import Any

Say = Callable[[str], object]


def say_to_stderr(line: str) -> None:
    """The default of everything here that says something."""
    print(f"penstock: {line}", file=sys.stderr, flush=True)


class Progress:
    """Bytes of one download, by all its threads. `pause_s` is the least time between two lines."""

    def __init__(self, what: str, total_bytes: int, *, say: Say = say_to_stderr, pause_s: float = 5.0) -> None:
        self._what, self._total, self._say, self._pause_s = what, total_bytes, say, pause_s
        self._done = 0
        self._began = self._said = time.monotonic()

    def add(self, num_bytes: float) -> None:
        """So many bytes are on disk."""
        self._done += int(num_bytes)
        now = time.monotonic()
        if now - self._said >= self._pause_s:
            self._said = now
            self._say(progress_line(self._what, self._done, self._total, now - self._began))

    def bar_class(self) -> type:
        """A class for huggingface_hub's `tqdm_class`: its bar of bytes on disk counts here, and none is shown."""
        from tqdm import tqdm

        progress = self

        class Bar(tqdm):  # type: ignore[misc]
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options | {"file": io.StringIO()})

            def update(self, n: float | None = 1) -> Any:
                if (self.desc or "").startswith("Reconstructing"):  # the others count files, and bytes on the wire
                    progress.add(n or 0)
                return super().update(n)

        return Bar


def progress_line(what: str, done: int, total: int, seconds: float) -> str:
    """`hf://org/name@main: 3.20 of 16.00 GB (20 %), 110 MB/s, 2 min left`."""
    rate = done / seconds if seconds > 0 else 0.0
    left = f", {duration((total - done) / rate)} left" if 0 < done < total and rate else ""
    percent = 100 * done // total if total else 100
    return f"{what}: {size(done)} of {size(total)} ({percent} %), {size(rate)}/s{left}"


def size(num_bytes: float) -> str:
    """`16.4 GB`: three digits and a unit."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while num_bytes >= 999.5 and len(units) > 1:
        num_bytes /= 1000
        units.pop(0)
    return f"{num_bytes:.3g} {units[0]}"


def duration(seconds: float) -> str:
    """`45 s` or `12 min`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
