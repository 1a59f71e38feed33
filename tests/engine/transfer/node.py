"""A worker's transfer half in a process of its own: a pool, its epochs, a transport and a puller, driven over a pipe.

Every node can own and read. Tests freeze and kill whole nodes, and choose UCX's transports per node, which is why even
the reader is never the test's own process.
"""

import contextlib
import functools
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch

from penstock.engine.transfer import Event, Pull, Puller, PullFailed, Regions, make_transport
from penstock.protocol import BlockTicket, Layout, Peer

WIRES = {
    "cma": ("nixl", {"UCX_NET_DEVICES": "lo"}),
    "ucx-tcp": ("nixl", {"UCX_NET_DEVICES": "lo", "UCX_TLS": "tcp,self"}),
    "tcp": ("tcp", {}),
}
"""Per wire: the transport's name and the environment it needs. All of them stay on loopback."""

NUM_BLOCKS = 256
BLOCK_BYTES = 24_576
"""One block of the demonstration model: 6 layers, 2 KV heads of 32, 16 tokens, K and V in bf16."""
REPLY_S = 20.0

_LAYOUT = Layout(protocol=1, model="test", weights_version="", kv_dtype="bfloat16", groups=((6, 2, 32),), block_size=16)


class Node:
    """What runs in the child. Block i of epoch e is filled with words that name both; see `words`."""

    def __init__(self, wire: str, generation: str, options: dict[str, Any]) -> None:
        self.num_blocks = options.pop("num_blocks", NUM_BLOCKS)
        self.block_bytes = options.pop("block_bytes", BLOCK_BYTES)
        self.generation = generation
        self.kv = torch.zeros((self.num_blocks, self.block_bytes // 8), dtype=torch.int64)
        self.epochs = np.random.default_rng().integers(2**32, 2**63, self.num_blocks, dtype=np.uint64)
        self.transport = make_transport(WIRES[wire][0], Regions(self.kv, self.epochs))
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.puller = Puller(self.transport, self.block_bytes, self.events.put, **options)
        self.puller.start()
        self._written: dict[int, BlockTicket] = {}
        self._calm = threading.Event()
        self._racers: list[threading.Thread] = []

    def peer(self) -> Peer:
        return Peer(
            generation=self.generation,
            layout=_LAYOUT,
            endpoints={self.transport.name: self.transport.endpoint},
            num_blocks=self.num_blocks,
        )

    def write(self, blocks: Sequence[int]) -> list[BlockTicket]:
        """Allocates and fills blocks as an engine does: epoch first, then bytes, then the ticket."""
        tickets = []
        for block in blocks:
            self.epochs[block] += np.uint64(1)
            epoch = int(self.epochs[block])
            self.kv[block] = words(block, epoch)
            self._written[block] = BlockTicket(block, epoch, b"")
            tickets.append(self._written[block])
        return tickets

    def race(self, blocks: Sequence[int]) -> None:
        """Goes on reallocating and filling these blocks from a thread until `race([])`."""
        self._calm.set()
        for racer in self._racers:
            racer.join()
        if blocks:
            self.write(blocks)
            self._calm.clear()
            self._racers = [threading.Thread(target=self._race, args=(blocks,))]
            self._racers[0].start()

    def tickets(self, blocks: Sequence[int]) -> list[BlockTicket]:
        """The last that were given: never for a block that is being filled."""
        return [self._written[block] for block in blocks]

    def fill(self, blocks: Sequence[int], word: int) -> None:
        """Another request's bytes in these blocks."""
        self.kv[list(blocks)] = word

    def contents(self, blocks: Sequence[int]) -> list[bytes]:
        return [self.kv[block].numpy().tobytes() for block in blocks]

    def holds(self, tickets: Sequence[BlockTicket], local_blocks: Sequence[int]) -> list[bool]:
        """Per block, whether it holds exactly what the ticket promised."""
        return [
            torch.equal(self.kv[local], torch.full_like(self.kv[local], words(ticket.block, ticket.epoch)))
            for ticket, local in zip(tickets, local_blocks, strict=True)
        ]

    def add_peer(self, peer: Peer) -> None:
        self.puller.add_peer(peer)

    def submit(self, pull: Pull) -> None:
        self.puller.submit(pull)

    def event(self, timeout_s: float) -> Event | None:
        try:
            return self.events.get(timeout=timeout_s)
        except Empty:
            return None

    def pull(self, request_id: str, generation: str, blocks: Any) -> Event | None:
        """Submits and waits for the event."""
        self.puller.submit(Pull(request_id, generation, blocks))
        return self.event(REPLY_S)

    def abort(self, request_id: str) -> None:
        self.puller.abort(request_id)

    def drain(self) -> None:
        """Forgets the events of an earlier test."""
        while not self.events.empty():
            self.events.get()

    def counters(self) -> Any:
        return self.puller.counters

    def silent(self) -> list[str]:
        """Peers that the puller does not read from."""
        return sorted(self.puller.silent)

    def lose_connections(self) -> None:
        """The tcp transport's connections break, as after minutes of silence."""
        connections = self.transport._connections  # type: ignore[attr-defined]
        self.puller._tell(lambda: [one.fail("broken by the test") for one in connections.values()] and None)

    def cpu_share(self, seconds: float) -> float:
        """The share of one core this process uses while nothing is asked of it."""
        wall, cpu = time.monotonic(), time.process_time()
        threading.Event().wait(seconds)
        return (time.process_time() - cpu) / (time.monotonic() - wall)

    def idle_s(self) -> float:
        return self.transport.idle_s

    def relive(self, wire: str, owner: Peer) -> tuple[int, int]:
        """Closes, lives another life in which it reads once, and closes again: what is left, see `usage`."""
        self.puller.close()
        life = Node(wire, self.generation, {})
        life.add_peer(owner)
        event = life.pull("a", owner.generation, [(BlockTicket(0, 0, b""), 0)])
        assert isinstance(event, PullFailed), event  # fenced, so it was read
        assert event.reason.endswith("after giving its ticket"), event
        life.puller.close()
        deadline = time.monotonic() + 2
        while usage()[0] > 1 and time.monotonic() < deadline:
            pass  # a joined thread is gone from /proc a moment later
        return usage()

    def drop_readers(self) -> None:
        """Cuts the tcp transport's connections from the owner's side."""
        for connection in list(self.transport._server._readers):  # type: ignore[attr-defined]
            connection.shutdown(socket.SHUT_RDWR)

    def _race(self, blocks: Sequence[int]) -> None:
        while not self._calm.is_set():
            for block in blocks:
                self.write([block])
                self._calm.wait(0.0005)
            self._calm.wait(random.choice((0.0, 0.0, 0.0, 0.02)))  # some pulls should win, on any machine


def words(block: int, epoch: int) -> int:
    """The 8-byte word that fills a block."""
    return (epoch * 1_000_003 + block) & (2**63 - 1)


def usage() -> tuple[int, int]:
    """Threads (also those Python knows nothing of) and open descriptors of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


class RemoteNode:
    """The test's end of a node."""

    def __init__(self, wire: str, generation: str, **options: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "tests.engine.transfer.node"])
        self._connection, end = context.Pipe()
        self.process = context.Process(target=_main, args=(end, wire, generation, options), daemon=True)
        self.process.start()
        end.close()

    @functools.cached_property
    def peer(self) -> Peer:
        """Waits until the node has started."""
        peer: Peer = self._receive()
        return peer

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of `Node` over there and returns what it returned."""
        assert self.peer
        self._connection.send((method, arguments))
        return self._receive()

    def close(self) -> int | None:
        """Lets the node close everything and end by itself: its exit code, None if it did not end."""
        self._connection.send(None)
        self.process.join(REPLY_S)
        return self.process.exitcode

    def pull(self, owner: "RemoteNode", tickets: Sequence[BlockTicket], local: Sequence[int], name: str = "a") -> Any:
        return self.call("pull", name, owner.peer.generation, list(zip(tickets, local, strict=True)))

    def submit(self, owner: "RemoteNode", tickets: Sequence[BlockTicket], local: Sequence[int], name: str) -> None:
        self.call("submit", Pull(name, owner.peer.generation, list(zip(tickets, local, strict=True))))

    def freeze(self) -> None:
        """Returns when the kernel says that the process has stopped."""
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + REPLY_S
        while "T" not in self._state():
            assert time.monotonic() < deadline, "the process did not stop"

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Returns when the process is gone."""
        self._signal(signal.SIGKILL)
        self.process.join(REPLY_S)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def _state(self) -> str:
        with open(f"/proc/{self.process.pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]

    def _receive(self) -> Any:
        assert self._connection.poll(REPLY_S), "the node did not answer"
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Pair(NamedTuple):
    """An owner, and a reader that has met it."""

    owner: RemoteNode
    reader: RemoteNode


def connected(start: Any, wire: str, **reader_options: Any) -> Pair:
    owner, reader = start(wire, "owner"), start(wire, "reader", **reader_options)
    reader.call("add_peer", owner.peer)
    return Pair(owner, reader)


def wait_until_heard(reader: RemoteNode, owner: RemoteNode) -> None:
    """Meets the owner, as every new request would, until something of it has landed."""
    deadline = time.monotonic() + REPLY_S
    while reader.call("silent"):
        assert time.monotonic() < deadline, "nothing has landed"
        reader.call("add_peer", owner.peer)


@contextlib.contextmanager
def nodes() -> Iterator[Any]:
    """A function that starts nodes; all of them are killed at the end, frozen or not."""
    started: list[RemoteNode] = []

    def start(wire: str, generation: str, **options: Any) -> RemoteNode:
        started.append(RemoteNode(wire, generation, **options))
        return started[-1]

    try:
        yield start
    finally:
        for node in started:
            node.kill()


def _main(connection: Connection, wire: str, generation: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ.update(WIRES[wire][1])
    node = Node(wire, generation, options)
    connection.send(node.peer())
    while (command := connection.recv()) is not None:
        method, arguments = command
        try:
            connection.send(getattr(node, method)(*arguments))
        except Exception as error:
            connection.send(error)
    node.race([])
    node.puller.close()
