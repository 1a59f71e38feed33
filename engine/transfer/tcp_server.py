"""Serves reads of a worker's two regions over plain TCP; one thread per reader, none of them ever asks the engine.

A reader sends the owner's 16-byte token, then requests: region, number of ranges, (offset, length) of each; the answer
is the bytes of the ranges, nothing else. Whoever breaks the form is disconnected. Bytes are copied from memory when
they are sent, so a request that is sent after an answer arrived reads memory as it is later: the fence needs that.
"""

import contextlib
import socket
import struct
import threading

import torch

from penstock.engine.transfer.transport import Regions

TOKEN_BYTES = 16
REQUEST = struct.Struct("<II")
RANGE = struct.Struct("<QQ")
KV, EPOCHS = 0, 1

_SILENT_PEER_MS = 10_000
"""A peer whose *kernel* is silent this long is gone. A frozen process does not count: its kernel still answers."""


def region_bytes(regions: Regions) -> tuple[memoryview, memoryview]:
    """The KV and epoch regions as writable bytes."""
    kv = regions.kv.reshape(-1).view(dtype=torch.uint8).numpy()
    return kv.data, regions.epochs.data.cast("B")


def tune(connection: socket.socket) -> None:
    """Small requests leave at once, and a partition ends the connection instead of lasting for ever."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_PEER_MS)


class BlockServer:
    """Listens on `host`, any port."""

    def __init__(self, regions: Regions, token: bytes, host: str) -> None:
        self._regions = region_bytes(regions)
        self._max_ranges = regions.num_blocks
        self._token = token
        self._lock = threading.Lock()
        self._readers: dict[socket.socket, threading.Thread] = {}
        self._closed = False
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="kv-server", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Ends all connections and threads."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            readers = dict(self._readers)
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        for connection in readers:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in (self._acceptor, *readers.values()):
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name="kv-reader", daemon=True)
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._readers[connection] = thread
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            tune(connection)
            if _receive(connection, TOKEN_BYTES) == self._token:
                while self._answer(connection):
                    pass
        except OSError:
            pass  # the reader left; its lease is the engine's business
        finally:
            with self._lock:
                self._readers.pop(connection, None)
            connection.close()

    def _answer(self, connection: socket.socket) -> bool:
        region, count = REQUEST.unpack(_receive(connection, REQUEST.size))
        if region not in (KV, EPOCHS) or count > self._max_ranges:
            return False
        memory = self._regions[region]
        ranges = list(RANGE.iter_unpack(_receive(connection, RANGE.size * count)))
        if any(offset + length > len(memory) for offset, length in ranges):
            return False
        for offset, length in ranges:
            connection.sendall(memory[offset : offset + length])
        return True


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    """Exactly `num_bytes`. Raises ConnectionError when the reader leaves before."""
    received = bytearray(num_bytes)
    view = memoryview(received)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise ConnectionError("the reader closed the connection")
        view = view[count:]
    return bytes(received)
