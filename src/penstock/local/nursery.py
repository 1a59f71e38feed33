"""A process that has imported torch and the engine once, and forks workers, so that each starts at once.

Importing torch takes 1.3 to 2.7 s; a fork of this process takes some 10 ms. Nothing here may start a thread, touch
NIXL or run a torch operation: forking would copy their broken remains. Ends with its parent, and its workers with it.

    python -m penstock.local.nursery SOCKET_FD PARENT_PID [MODULE ...]
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from typing import NoReturn

from penstock.engine.messages import Started
from penstock.errors import ConfigError, PenstockError
from penstock.local.orders import (
    MAX_PACKET_BYTES,
    Exited,
    Fork,
    Forked,
    Preloaded,
    Ready,
    Refused,
    decode_order,
    encode,
)
from penstock.worker.lifetime import die_with_parent
from penstock.worker.title import set_title

PRELOAD = ("torch", "penstock.engine.process", "penstock.worker.main")


class Nursery:
    """Forks on order and tells when a worker ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._children: dict[int, tuple[int, str]] = {}
        """Pid and name by pidfd."""

    def run(self) -> None:
        """Until the other end closes the socket."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor != self._control.fileno():
                    self._bury(descriptor)
                elif not self._obey():
                    return

    def _obey(self) -> bool:
        packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET_BYTES, 1)
        if not packet:
            return False
        order = decode_order(packet)
        nursery = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_worker(order, descriptors[0], self._control, nursery)
        os.close(descriptors[0])
        descriptor = os.pidfd_open(pid)
        self._children[descriptor] = pid, order.name
        self._poll.register(descriptor, select.POLLIN)
        self._control.send(encode(Forked(order.name, pid)))
        return True

    def _bury(self, descriptor: int) -> None:
        pid, name = self._children.pop(descriptor)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        self._control.send(encode(Exited(name, status)))


def _become_worker(order: Fork, log: int, control: socket.socket, nursery: int) -> NoReturn:
    from penstock.worker.main import run_worker

    def tell_ready(started: Started, _: int) -> None:
        control.send(encode(Ready(order.name, started.transport, started.notes)))

    status = 1
    try:
        die_with_parent(nursery)
        set_title(f"penstock {order.name}")
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        run_worker(order.worker, on_ready=tell_ready)
        status = 0
    except ConfigError as error:
        control.send(encode(Refused(order.name, str(error))))
        status = 2
    except PenstockError as error:
        print(error, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Preloads, then serves."""
    die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    for module in PRELOAD:
        importlib.import_module(module)
    for module in sys.argv[3:]:
        with contextlib.suppress(ImportError):  # a model of an unknown type is for the engine to refuse
            importlib.import_module(module)
    gc.freeze()  # collections in a child would otherwise touch, and so copy, every page
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        print(f"warning: {threads} threads after imports; forking copies only one of them", file=sys.stderr)
    control.send(encode(Preloaded()))
    Nursery(control).run()


if __name__ == "__main__":
    main()
