"""Processes that a benchmark starts: they and all that they start end with it, however it ends.

A process leads a group of its own, and beside it sleeps a guard, a shell with a pipe whose other end only the benchmark
holds. When that end closes, on purpose or because the benchmark was killed, the guard kills the group. (To have the
kernel kill the process with its parent is not enough: a killed vLLM server leaves its engine core behind, which spins.)
"""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PATIENCE_S = 10.0
"""How long a process may take to end in good order."""


class Tied(subprocess.Popen[Any]):
    """A process, started as by Popen, whose group ends with this process."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        super().__init__(command, start_new_session=True, **options)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$0"', str(self.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self) -> None:
        """Ends the process and all that it started; again and again does no harm."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.wait(PATIENCE_S)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        self.wait()


def run(command: Sequence[str], *, limit_s: float, **options: Any) -> None:
    """Runs a command to its end. Raises SystemExit with the end of its output when it fails or takes too long."""
    with Tied(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
            fault = f"ended with status {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.stop()
            output, _ = process.communicate()
            fault = f"took longer than {limit_s:.0f} s"
        finally:
            process.stop()
    if fault:
        raise SystemExit(f"`{' '.join(command)}` {fault}:\n{output[-4000:]}")


def wait_until_healthy(process: Tied, url: str, limit_s: float) -> None:
    """Waits for HTTP 200. Raises SystemExit when the process ends or time runs out."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the process of {url} ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)
    process.stop()
    raise SystemExit(f"{url} was not healthy after {limit_s:.0f} s")
