"""Local mode's side of the nursery: starts it, orders workers, and learns what became of them."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys

from penstock.errors import PenstockError
from penstock.local.child import Child, process_ended
from penstock.local.orders import (
    MAX_PACKET_BYTES,
    Exited,
    Fork,
    Forked,
    FromNursery,
    Preloaded,
    Ready,
    Refused,
    decode,
    encode,
)
from penstock.worker.config import WorkerConfig
from penstock.worker.lifetime import describe_exit

STOP_S = 1.0


class Forks:
    """Workers by fork of a nursery, which is started when the first is wanted, and again if it died."""

    def __init__(self, threads_per_worker: int, preload: tuple[str, ...]) -> None:
        """`preload` names modules to import before forking, beside those that every worker needs."""
        self._threads = threads_per_worker
        self._preload = preload
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._preloaded = asyncio.Event()
        self._starting = asyncio.Lock()
        self._forked: dict[str, asyncio.Future[Child]] = {}
        self._children: dict[str, Child] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def fork(self, name: str, config: WorkerConfig, log: int) -> Child:
        """A new worker, which writes to the descriptor `log`. Raises PenstockError when the nursery dies on the way."""
        async with self._starting:
            if self._process is None:
                self._start()
        await self._preloaded.wait()
        if self._control is None:
            raise PenstockError("the process that forks workers died while it imported torch")
        forked: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._forked[name] = forked
        socket.send_fds(self._control, [encode(Fork(name, config))], [log])
        return await forked

    async def stop(self) -> None:
        """Ends the nursery; what it forked and still lives ends with it."""
        if self._process is None or self._watcher is None:
            return
        if self._control is not None:
            self._control.shutdown(socket.SHUT_RDWR)  # its sign to leave
        try:
            async with asyncio.timeout(STOP_S):
                await asyncio.shield(self._watcher)
        except TimeoutError:
            self._process.kill()
            await self._watcher

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        words = [str(theirs.fileno()), str(os.getpid()), *self._preload]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "penstock.local.nursery", *words],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=_environment(self._threads),
            start_new_session=True,  # Ctrl-C in the terminal is for local mode alone, which stops all in order
        )
        theirs.close()
        self._control = ours
        self._preloaded.clear()
        asyncio.get_running_loop().add_reader(ours, self._receive, ours)
        self._watcher = asyncio.ensure_future(self._watch(self._process))

    async def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Waits for the nursery's end, which is the end of all that it forked."""
        await process_ended(process.pid)
        process.wait()
        assert self._control is not None
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        self._control = self._process = None
        self._preloaded.set()
        for forked in self._forked.values():
            if not forked.done():
                forked.set_exception(PenstockError("the process that forks workers died"))
        for child in self._children.values():
            child.end("ended with the process that forks workers")

    def _receive(self, control: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            if packet := control.recv(MAX_PACKET_BYTES):
                self._take(decode(packet))
            else:
                asyncio.get_running_loop().remove_reader(control)

    def _take(self, message: FromNursery) -> None:
        match message:
            case Preloaded():
                self._preloaded.set()
            case Forked(name, pid):
                self._children[name] = Child(name, pid)
                self._forked.pop(name).set_result(self._children[name])
            case Ready(name, transport, notes):
                self._children[name].ready.set_result((f"transport {transport}", *notes))
            case Refused(name, reason):
                self._children[name].refusal = reason
            case Exited(name, status):
                self._children[name].end(describe_exit(status))


def _environment(threads: int) -> dict[str, str]:
    """Matrix libraries read these when they are loaded.

    How OpenMP's threads wait is left to it: they spin a little, then sleep. Made to sleep at once (OMP_WAIT_POLICY
    PASSIVE), two threads decode no faster than one: 20 instead of 31 tokens/s (135 M parameters, 2-core Intel).
    """
    only_loopback = {"UCX_NET_DEVICES": "lo"}  # else UCX listens on every interface of the machine
    return only_loopback | os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
