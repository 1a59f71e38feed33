"""Workers and routers as real processes, forked from a server that has imported torch once: a start takes a second.

Whatever a test does to them (kill, freeze), all are gone when the deployment ends, or when pytest itself dies.
"""

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from penstock.router.config import RouterConfig
from penstock.worker.config import WorkerConfig
from penstock.worker.lifetime import EngineMain, die_with_parent

START_S = 60.0
"""A start takes about a second; this is for a machine that does ten other things."""

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC_PRIVATE = 0x4000 | 0x40000

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch",
        "penstock.engine.process",
        "penstock.router.main",
        "penstock.worker.main",
        "transformers.models.qwen3.configuration_qwen3",
        "tests.e2e.processes",
        "tests.engine.harness",
    ]
)


@dataclass(frozen=True)
class Surroundings:
    """Where a process runs: its log, what its environment adds, and its network namespace ("" for the test's own)."""

    log: Path
    environment: Mapping[str, str]
    namespace: str = ""

    def enter(self) -> None:
        """Makes the calling process, a fresh fork, live there."""
        die_with_parent(os.getppid())
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(self.environment)
        if self.namespace:
            _enter_namespace(self.namespace)


class Running:
    """One started process, and the engine process behind it if it is a worker."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        """`target(ready, *arguments)` runs in the process and sends what `wait_ready` returns."""
        self._ready, end = _context.Pipe(duplex=False)
        self._process = _context.Process(target=target, args=(end, *arguments), daemon=True)
        self._process.start()
        end.close()
        assert self._process.pid is not None
        self.front = self._process.pid
        self.engine = 0

    def wait_ready(self) -> None:
        """Until it takes requests."""
        assert self._ready.poll(START_S), "a process did not start in time"
        self.engine = self._ready.recv()

    @property
    def pids(self) -> tuple[int, ...]:
        """Front and engine; a router has no engine."""
        return (self.front, self.engine) if self.engine else (self.front,)

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def wait_gone(self) -> None:
        """Until all of its processes have ended."""
        self._process.join(START_S)
        assert not self._process.is_alive(), "a process did not end"
        eventually(lambda: not any(exists(pid) for pid in self.pids), "the end of the engine process")

    def kill(self) -> None:
        """Ends it whatever its state; returns when it is gone."""
        for pid in self.pids:
            send_signal(pid, signal.SIGKILL)
        self.wait_gone()
        self._ready.close()


def send_signal(pid: int, number: signal.Signals) -> None:
    """Does nothing if the process has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def freeze(*pids: int) -> None:
    """SIGSTOP; returns when the kernel says that they have stopped."""
    for pid in pids:
        send_signal(pid, signal.SIGSTOP)
    for pid in pids:
        eventually(lambda: state(pid) in "TX", "a process stopping")  # noqa: B023 - it is called at once


def thaw(*pids: int) -> None:
    """SIGCONT."""
    for pid in pids:
        send_signal(pid, signal.SIGCONT)


def state(pid: int) -> str:
    """The kernel's letter for a process's state; "X" when it has ended."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "X"
    return "X" if letter == "Z" else letter


def exists(pid: int) -> bool:
    return state(pid) != "X"


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = START_S, pause_s: float = 0.005) -> None:
    """Returns as soon as `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(pause_s)


def start_worker(config: WorkerConfig, surroundings: Surroundings, engine_main: EngineMain | None = None) -> Running:
    """A worker's front, which forks its engine: the real one, or a function of a module. Does not wait."""
    return Running(_run_worker, config, surroundings, engine_main)


def start_router(config: RouterConfig, surroundings: Surroundings) -> Running:
    """A router. Does not wait; `wait_ready` returns when it is about to listen."""
    return Running(_run_router, config, surroundings)


def _enter_namespace(name: str) -> None:
    """As `ip netns exec`: with a /sys that shows the namespace's devices, where UCX looks for them."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/var/run/netns/{name}", os.O_RDONLY)
    for failed in (
        libc.setns(descriptor, _CLONE_NEWNET),
        libc.unshare(_CLONE_NEWNS),
        libc.mount(None, b"/", None, _MS_REC_PRIVATE, None),
        libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {name}")
    os.close(descriptor)


def _run_worker(
    ready: Connection, config: WorkerConfig, surroundings: Surroundings, engine_main: EngineMain | None
) -> None:
    surroundings.enter()
    from penstock.worker.main import run_worker

    def tell(_: object, __: int) -> None:
        pid = os.getpid()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ready.send(int(children[0]))

    run_worker(config, engine_main=engine_main, on_ready=tell)


def _run_router(ready: Connection, config: RouterConfig, surroundings: Surroundings) -> None:
    surroundings.enter()
    from penstock.router.main import run_router

    ready.send(0)
    run_router(config)
