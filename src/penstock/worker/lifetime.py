"""Ties processes together: a worker's front and engine live and die together, and no orphan outlives its parent."""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NoReturn

from penstock.engine.config import EngineConfig
from penstock.engine.messages import StartFailed, encode
from penstock.errors import ConfigError
from penstock.worker.title import set_title, title

EngineMain = Callable[[EngineConfig, Connection], None]

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the thread of `parent` (a pid) that made it ends."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def fork_engine(
    config: EngineConfig, engine_main: EngineMain | None, *, close: tuple[int, ...] = ()
) -> tuple[int, Connection]:
    """Forks the engine process and returns its pid and the front's end of the pipe.

    Call it before any thread or event loop exists. The child closes the descriptors `close` and runs `engine_main`,
    by default the real engine, which it imports only after the fork so that the front stays free of torch.
    """
    ours, theirs = Pipe(duplex=True)
    front = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _run_child(config, engine_main, theirs, front, (ours.fileno(), *close))
    theirs.close()  # else the front would never read EOF
    return pid, ours


def _run_child(
    config: EngineConfig,
    engine_main: EngineMain | None,
    connection: Connection,
    front: int,
    close: tuple[int, ...],
) -> NoReturn:
    status = 1
    try:
        # Ctrl-C and SIGTERM reach the whole process group, but the front decides: it drains first.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        die_with_parent(front)
        set_title(f"engine of {title()}")
        for descriptor in close:
            os.close(descriptor)
        (engine_main or _import_engine())(config, connection)
        status = 0
    except ConfigError as error:
        connection.send_bytes(encode(StartFailed(str(error))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the front is gone
    except Exception:
        log.exception("the engine process fails")
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _import_engine() -> EngineMain:
    from penstock.engine.process import run_engine

    return run_engine


def describe_exit(status: int) -> str:
    """What a wait status means, in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
