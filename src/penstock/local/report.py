"""What local mode shows in the terminal: one line per change of a part, and the parts' own logs with their names."""

import sys
import time
from typing import TextIO

_WIDTH = 10


class Report:
    """Writes lines about parts to `stream`."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream
        self._spared: str | None = None
        self._notes: set[str] = set()

    def say(self, text: str) -> None:
        """A line about the whole."""
        if self._spared is None:
            print(text, file=self._stream, flush=True)

    def part(self, name: str, text: str) -> None:
        """A line about one part."""
        self.say(f"  {name:<{_WIDTH}} {text}")

    def note(self, text: str) -> None:
        """A line that concerns all parts alike, shown once however many of them say it."""
        if text not in self._notes:
            self._notes.add(text)
            self.part("", text)

    def log(self, name: str, line: str) -> None:
        """A line that a part wrote."""
        if self._spared in (None, name):
            print(f"  {name:<{_WIDTH}} | {line}", file=sys.stderr, flush=True)

    def mute(self, *, spare: str) -> None:
        """Nothing more is shown but the logs of part `spare`, which failed: the others' ends would only hide why."""
        self._spared = spare


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s"
