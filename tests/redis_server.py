"""A Redis of one test, which may be killed, frozen and started anew, empty, on the same port."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.listen import free_port

PROGRAM = shutil.which("redis-server")


class RedisServer:
    """Holds everything in memory: a new process is an empty one."""

    def __init__(self, port: int, folder: Path) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self._port = port
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        assert PROGRAM is not None
        options = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self._folder))
        self.process = subprocess.Popen(
            [PROGRAM, "--port", str(self._port), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while not self._answers():
            assert self.process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.01)

    def freeze(self) -> None:
        """It is there, but says nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once, frozen or not."""
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    """On a free port, for as long as the block lasts."""
    server = RedisServer(free_port(), folder)
    try:
        yield server
    finally:
        server.kill()
