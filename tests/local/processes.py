"""Runs `penstock up` as a user does, and looks at the processes it makes."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

START_S = 60.0
"""On an idle machine 3 s are enough; tests share theirs."""


class Up:
    """A running `penstock up`."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock.cli", "up", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.text = ""

    def wait_line(self, pattern: str, within_s: float = START_S) -> re.Match[str]:
        """The first line after those seen so far that matches. Raises AssertionError with all output if none comes."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + within_s
        seen = len(self.text)
        while True:
            for match in re.finditer(pattern, self.text[seen:]):
                return match
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 2**16) if ready else b""
            if not data:
                raise AssertionError(f"no line matches {pattern!r} in:\n{self.text}")
            self.text += data.decode()

    def wait_ready(self) -> str:
        """The URL of the running cluster."""
        return self.wait_line(r"ready in \d+\.\d s: (http://\S+)/v1\n\n(curl .*)\n")[1]

    def descendants(self) -> list[psutil.Process]:
        processes: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return processes

    def worker(self, name: str) -> psutil.Process:
        """The front process of a worker."""
        port = int(re.findall(rf"{name} +ready .*http://127.0.0.1:(\d+)", self.text)[-1])
        return next(process for process in self.descendants() if port in listening_ports(process))

    def stop(self) -> str:
        """Ctrl-C; the rest of the output."""
        self.process.send_signal(signal.SIGINT)
        output, _ = self.process.communicate(timeout=10)
        return str(output.decode())


@contextmanager
def running_up(*arguments: str) -> Iterator[Up]:
    """`penstock up` with these arguments, killed at the end if it still runs."""
    up = Up(*arguments)
    try:
        yield up
    finally:
        up.process.kill()
        up.process.communicate()


def listening_ports(process: psutil.Process) -> set[int]:
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return set()
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def wait_all_gone(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those that still run after so long."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def corrupt(folder: Path) -> None:
    """Cuts the weights of a model folder short."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
