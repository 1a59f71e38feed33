"""Starts real workers around the fake engine, and sees what their engines receive."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

FAKE = Path(__file__).with_name("fake_engine.py")
START_S = 30.0


class Journal:
    """The messages that one fake engine receives, as it receives them."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._socket: socket.socket | None = None
        self._lines: list[bytes] = [b""]

    def engine_pid(self) -> int:
        """The engine's process id, its first word."""
        self._listener.settimeout(START_S)
        self._socket, _ = self._listener.accept()
        return int(self._next_line(START_S))

    def expect(self, kind: str, of: Struct, within_s: float = 5.0, **fields: str) -> dict[str, Any]:
        """The next message of this kind about request `of`; others are skipped. Raises TimeoutError when none comes."""
        request_id = f"{of.request_id}#"  # type: ignore[attr-defined]
        deadline = time.monotonic() + within_s
        while True:
            message: dict[str, Any] = json.loads(self._next_line(deadline - time.monotonic()))
            if message["kind"] == kind and message["id"].startswith(request_id) and fields.items() <= message.items():
                return message

    def _next_line(self, within_s: float) -> bytes:
        assert self._socket is not None
        while len(self._lines) < 2:
            self._socket.settimeout(max(0.001, within_s))
            data = self._socket.recv(2**16)
            if not data:
                raise EOFError("the engine is gone")
            self._lines = (self._lines[0] + data).split(b"\n")
        return self._lines.pop(0)

    def close(self) -> None:
        self._listener.close()
        if self._socket:
            self._socket.close()


class WorkerProcess:
    """A worker: its front's process, its engine's pid, its URL."""

    def __init__(self, process: "subprocess.Popen[str]", journal: Journal) -> None:
        self.process = process
        self.journal = journal
        self.url = f"http://127.0.0.1:{_read_port(process)}"
        self.engine_pid = journal.engine_pid()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.engine_pid, signal.SIGCONT)
        self.process.kill()
        self.process.communicate()
        self.journal.close()


@contextlib.contextmanager
def running_worker(folder: Path, role: str = "decode", *flags: str) -> Iterator[WorkerProcess]:
    """A worker around the fake engine, killed at the end."""
    folder.mkdir(exist_ok=True)
    journal = Journal(folder / "journal")
    process = start(role, "--port", "0", "--secret", journal.path, *flags)
    try:
        worker = WorkerProcess(process, journal)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    try:
        yield worker
    finally:
        worker.kill()


def start(*arguments: str) -> "subprocess.Popen[str]":
    """A worker process around the fake engine."""
    command = [sys.executable, str(FAKE), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_gone(pid: int, within_s: float) -> bool:
    """Whether the process `pid`, not necessarily a child, ends in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with contextlib.closing(os.fdopen(descriptor, "rb", buffering=0)):
        ended, _, _ = select.select([descriptor], [], [], within_s)
    return bool(ended)


def _read_port(process: "subprocess.Popen[str]") -> int:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline() if ready else ""
    if not line.startswith("port "):
        process.kill()
        raise AssertionError(f"the worker did not start: {process.communicate()[1]}")
    return int(line.split()[1])
