"""The fallback transport: plain TCP, no dependency, host memory only.

It behaves as NIXL does: a read from a frozen peer stays in flight for ever, one from a dead peer raises, and bytes may
land late. Bytes land only inside `progress`. On one host it is 1.3 to 2 times as fast as UCX over tcp, which emulates
one-sided reads (32 scattered blocks of 24 KiB, from submit to verified: 0.5 ms against 1.1 ms; cma 0.36 ms).
"""

import secrets
import select
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

import msgspec
import numpy as np

from penstock.engine.transfer.tcp_server import EPOCHS, KV, RANGE, REQUEST, TOKEN_BYTES, BlockServer, region_bytes, tune
from penstock.engine.transfer.transport import Endpoint, Epochs, Read, Regions, read_endpoint
from penstock.errors import ConfigError, TransferError

_TURN_BYTES = 4 << 20
"""Bytes taken from one peer before the others get their turn: about 2 ms."""


class _Endpoint(Endpoint, frozen=True, array_like=True):
    host: str
    port: int
    token: bytes
    """Drawn anew by every process, so that a successor on the same port is never mistaken for it."""


class _TcpRead:
    """Destinations still to be filled, in the order in which the peer sends."""

    def __init__(self, destinations: Iterable[memoryview], epochs: Epochs | None = None) -> None:
        self.epochs: Epochs | None = epochs
        self.destinations = deque(destinations)
        self.error = ""

    def poll(self) -> bool:
        if self.error:
            raise TransferError(self.error)
        return not self.destinations


class _Connection:
    """The way to one peer: requests go out and answers come in, both in order."""

    def __init__(self, generation: str, endpoint: _Endpoint, epoll: select.epoll) -> None:
        self.endpoint = endpoint
        self.lost = ""
        self._generation = generation
        self._epoll = epoll
        self._reads: deque[_TcpRead] = deque()
        self._outbox = bytearray(endpoint.token)
        family, kind, protocol, _, address = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)[
            0
        ]
        self._socket = socket.socket(family, kind, protocol)
        self._socket.setblocking(False)
        tune(self._socket)
        self._socket.connect_ex(address)  # a refusal shows at the first send or receive
        self._epoll.register(self._socket, select.EPOLLIN | select.EPOLLOUT)

    def fileno(self) -> int:
        return self._socket.fileno()

    def request(self, region: int, ranges: Sequence[tuple[int, int]], read: _TcpRead) -> None:
        self._outbox += REQUEST.pack(region, len(ranges)) + b"".join(RANGE.pack(*one) for one in ranges)
        self._reads.append(read)
        self.pump()
        if self._outbox and not self.lost:
            self._epoll.modify(self._socket, select.EPOLLIN | select.EPOLLOUT)

    def pump(self) -> None:
        """Sends and receives what is possible without waiting."""
        try:
            if self._outbox:
                with suppress(BlockingIOError):  # the peer may send first only if somebody receives
                    del self._outbox[: self._socket.send(self._outbox)]
                if not self._outbox:
                    self._epoll.modify(self._socket, select.EPOLLIN)
            self._receive()
        except BlockingIOError:
            pass
        except OSError as error:
            self.fail(str(error))

    def fail(self, reason: str) -> None:
        """Ends the connection: nothing lands any more, and every read in flight raises."""
        if self.lost:
            return
        self.lost = f"peer {self._generation} lost: {reason}"
        self._epoll.unregister(self._socket)
        self._socket.close()
        for read in self._reads:
            read.error = self.lost
        self._reads.clear()

    def _receive(self) -> None:
        budget = _TURN_BYTES
        while budget > 0:
            destinations = self._reads[0].destinations if self._reads else deque([memoryview(bytearray(1))])
            count = self._socket.recv_into(destinations[0])
            if count == 0 or not self._reads:
                raise ConnectionError("connection closed" if count == 0 else "it sent bytes nobody asked for")
            budget -= count
            rest = destinations.popleft()[count:]
            if rest:
                destinations.appendleft(rest)
            elif not destinations:
                self._reads.popleft()


class TcpTransport:
    """Reads peers' memory over TCP and serves its own; see `Transport` for the contract."""

    name = "tcp"
    idle_s = 1.0  # its server has threads of its own: nobody waits for `progress`

    def __init__(self, regions: Regions, *, host: str = "127.0.0.1") -> None:
        if regions.kv.is_cuda:
            raise ConfigError("the tcp transport moves host memory only; KV on a GPU needs nixl")
        self._regions = regions
        self._kv, _ = region_bytes(regions)
        token = secrets.token_bytes(TOKEN_BYTES)
        self._server = BlockServer(regions, token, host)
        self.endpoint = msgspec.msgpack.encode(
            _Endpoint(regions.num_blocks, regions.block_bytes, host, self._server.port, token)
        )
        self._epoll = select.epoll()
        self._connections: dict[str, _Connection] = {}

    def connect(self, generation: str, endpoint: bytes) -> None:
        known = self._connections.get(generation)
        if known is not None and not known.lost:
            return
        remote = read_endpoint(generation, endpoint, _Endpoint, self._regions)
        try:
            self._connections[generation] = _Connection(generation, remote, self._epoll)
        except OSError as error:
            raise TransferError(f"cannot connect to peer {generation}: {error}") from error

    def read_blocks(self, generation: str, pairs: Sequence[tuple[int, int]]) -> Read:
        connection = self._connection(generation)
        size = self._regions.block_bytes
        remote = [(first, count) for first, count in _runs([pair[0] for pair in pairs])]
        local = [(first, count) for first, count in _runs([pair[1] for pair in pairs])]
        _check_range(remote, connection.endpoint.num_blocks, f"peer {generation}")
        _check_range(local, self._regions.num_blocks, "this worker")
        read = _TcpRead(self._kv[first * size : (first + count) * size] for first, count in local)
        connection.request(KV, [(first * size, count * size) for first, count in remote], read)
        return read

    def read_epochs(self, generation: str, first: int, count: int) -> Read:
        connection = self._connection(generation)
        _check_range([(first, count)], connection.endpoint.num_blocks, f"peer {generation}")
        epochs = np.zeros(count, dtype=np.uint64)
        read = _TcpRead([epochs.data.cast("B")], epochs)
        connection.request(EPOCHS, [(first * 8, count * 8)], read)
        return read

    def progress(self) -> None:
        ready = {descriptor for descriptor, _ in self._epoll.poll(0)}
        for connection in list(self._connections.values()) if ready else ():
            if connection.fileno() in ready:
                connection.pump()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def disconnect(self, generation: str) -> None:
        connection = self._connections.pop(generation, None)
        if connection is not None:
            connection.fail("disconnected")

    def close(self) -> None:
        for generation in list(self._connections):
            self.disconnect(generation)
        self._server.close()
        self._epoll.close()

    def _connection(self, generation: str) -> _Connection:
        connection = self._connections.get(generation)
        if connection is None or connection.lost:
            raise TransferError(connection.lost if connection else f"peer {generation} is not connected")
        return connection


def _runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of the runs of neighbours in `blocks`."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and block == runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((block, 1))
    return runs


def _check_range(runs: Sequence[tuple[int, int]], num_blocks: int, owner: str) -> None:
    for first, count in runs:
        if first < 0 or first + count > num_blocks:
            raise TransferError(f"{owner} has blocks 0 to {num_blocks - 1}, not {first} to {first + count - 1}")
