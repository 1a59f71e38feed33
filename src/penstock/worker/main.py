"""Starts a worker: an engine process behind a pipe, then HTTP in front of it, until a signal or the engine's end.

The engine is forked before this process has any thread or event loop, and imports torch on its own side of the fork.
"""

import asyncio
import contextlib
import gc
import logging
import os
import select
import signal
import socket
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from multiprocessing.connection import Connection
from typing import TypeAlias

import uvicorn
import uvloop

from penstock.address import bracketed
from penstock.engine.messages import Started, StartFailed, Stop, decode_from_engine
from penstock.errors import ConfigError, Stopping, WorkerLost
from penstock.hop import new_session
from penstock.listen import bind
from penstock.telemetry.logs import set_up_logs
from penstock.telemetry.trace import check_tracing, open_tracer
from penstock.worker.app import build_app
from penstock.worker.bridge import EngineBridge
from penstock.worker.config import WorkerConfig
from penstock.worker.front import Front
from penstock.worker.lifetime import EngineMain, describe_exit, fork_engine
from penstock.worker.metrics import WorkerMetrics

log = logging.getLogger(__name__)

OnReady: TypeAlias = Callable[[Started, int], None]

HANDOVER_S = 2.0
"""At the end of the grace, how long KV stays readable for those who take over; at most a quarter of the grace."""
ENGINE_STOP_S = 1.0
"""How long the engine may take to leave after Stop."""
ENGINE_END_S = 0.2
"""How long an engine whose pipe has closed may take to end: the kernel closes a killed process's pipe first."""
KEEP_ALIVE_S = 75
"""Longer than any client pools an idle connection, so that none is reused just as it is closed."""


def run_worker(
    config: WorkerConfig, *, engine_main: EngineMain | None = None, on_ready: OnReady = lambda _, __: None
) -> None:
    """Serves until SIGTERM or SIGINT, whose first drains and whose second stops at once.

    `engine_main` replaces the real engine; `on_ready` is called with what the engine said and the port once
    requests are taken.
    Raises ConfigError when the port is taken or the engine refuses its model, WorkerLost when the engine dies at
    start. When it dies later this process exits with code 1 at once, which cuts every open stream.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # as pid 1 of a container there would be no default action
        signal.signal(number, lambda received, _: os._exit(128 + received))
    set_up_logs(config)
    check_tracing(config)
    listener = bind(config.host, config.port)
    pid, connection = fork_engine(config.engine, engine_main, close=(listener.fileno(),))
    started = _wait_started(pid, connection)
    gc.freeze()  # what exists now stays; collections look only at what requests make
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, started, connection, listener, pid, on_ready))
    _reap(pid)


def _wait_started(pid: int, connection: Connection) -> Started:
    """The engine's first word, which may take as long as the weights take to load."""
    try:
        while True:
            message = decode_from_engine(connection.recv_bytes())
            if isinstance(message, Started):
                return message
            if isinstance(message, StartFailed):
                raise ConfigError(message.message)
    except (EOFError, OSError):
        _, status = os.waitpid(pid, 0)
        raise WorkerLost(f"the engine process {describe_exit(status)} before it was ready") from None


async def _serve(
    config: WorkerConfig,
    started: Started,
    connection: Connection,
    listener: socket.socket,
    pid: int,
    on_ready: OnReady,
) -> None:
    bridge = EngineBridge(started, max_behind=config.max_frames_behind, on_lost=lambda: _exit_without_engine(pid))
    await bridge.attach(connection)
    async with new_session() as session:
        tracer = open_tracer(config, f"penstock-{config.role}")
        front = Front(config, bridge, session, WorkerMetrics(bridge, config.role, config.model_name), tracer)
        server = _Server(front)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        await server.listening.wait()
        async with _publishing(config, bridge):
            with _signals() as signals:
                on_ready(started, listener.getsockname()[1])
                await signals.get()
                await _drain(front, signals)
        bridge.end_all(Stopping("this worker is stopping"))
        server.should_exit = True
        await serving
        await asyncio.to_thread(tracer.close)
    bridge.on_lost = lambda: None
    bridge.send(Stop())
    await asyncio.sleep(0)  # lets the bridge write it


@contextlib.asynccontextmanager
async def _publishing(config: WorkerConfig, bridge: EngineBridge) -> AsyncIterator[None]:
    """Tells ZMQ subscribers of the prefix cache, where the configuration says so. Raises ConfigError."""
    if not config.kv_events:
        yield
        return
    from penstock.worker.zmq_publisher import ZmqPublisher

    publisher = ZmqPublisher(config.kv_events, config.kv_events_topic, config.kv_events_form)
    task = asyncio.create_task(publisher.run(bridge), name="kv-events")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        publisher.close()


async def _drain(front: Front, signals: "asyncio.Queue[int]") -> None:
    """Refuses new requests and returns when no stream is open, the grace is over, or another signal came.

    Streams that have not finished near the end of the grace go on elsewhere; whoever takes them over finds their KV
    in the prefix cache here.
    """
    front.draining = True
    handover_s = min(HANDOVER_S, front.config.drain_grace_s / 4)
    waits = [asyncio.ensure_future(wait) for wait in (front.bridge.idle.wait(), signals.get())]
    finish_s = front.config.drain_grace_s - handover_s
    done, _ = await asyncio.wait(waits, timeout=finish_s, return_when=asyncio.FIRST_COMPLETED)
    if not done:
        front.bridge.end_all(Stopping("this worker is stopping"))
        await asyncio.wait(waits[1:], timeout=handover_s)
    for wait in waits:
        wait.cancel()


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handling, which would not drain."""

    def __init__(self, front: Front) -> None:
        super().__init__(
            uvicorn.Config(
                build_app(front),
                loop="none",
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_level="warning",
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=1,
                backlog=2048,
            )
        )
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@contextlib.contextmanager
def _signals() -> Iterator["asyncio.Queue[int]"]:
    """Receives SIGTERM and SIGINT as a queue."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, queue.put_nowait, number)
    yield queue


def _exit_without_engine(pid: int) -> None:
    """Leaves at once: open connections are cut, which tells every caller to go elsewhere."""
    how = describe_exit(os.waitpid(pid, 0)[1]) if _has_ended(pid, ENGINE_END_S) else "closed its pipe"
    log.error("the engine process %s; this worker ends with it", how)
    os._exit(1)


def _reap(pid: int) -> None:
    """Waits for the engine process to end, and kills it when it does not."""
    if not _has_ended(pid, ENGINE_STOP_S):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _has_ended(pid: int, within_s: float) -> bool:
    """Whether the process ends within so long; its status waits to be read."""
    descriptor = os.pidfd_open(pid)
    look = select.poll()  # select() takes no descriptor over 1023
    look.register(descriptor)
    ended = look.poll(1000 * within_s)
    os.close(descriptor)
    return bool(ended)


def announce(config: WorkerConfig) -> OnReady:
    """An `on_ready` that logs so in one line."""

    def say(started: Started, port: int) -> None:
        what = "; ".join((f"transport {started.transport}", *started.notes))
        url = f"http://{bracketed(config.host)}:{port}"
        log.info("%s worker ready at %s: %s", config.role, url, what)

    return say
