"""Publishes vLLM's KV events over ZMQ: three frames, topic, number of the batch (8 bytes, big-endian) and msgpack.

The only module that imports zmq. A subscriber that is late or slow misses batches, and sees so by their numbers; whoever
must know all reads `/events`, which begins with a snapshot.
"""

import itertools
import time

import zmq

from penstock.errors import ConfigError
from penstock.protocol import Events
from penstock.worker.bridge import EngineBridge
from penstock.worker.vllm_events import Form, encode_batch

_MOST_BEHIND = 100_000
"""Batches that wait for a slow subscriber (vLLM's default)."""


class ZmqPublisher:
    """One per worker."""

    def __init__(self, endpoint: str, topic: str, form: str) -> None:
        """Listens at an endpoint with a star (`tcp://*:5557`), else connects to it, as vLLM does. Raises ConfigError."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set_hwm(_MOST_BEHIND)
        self._socket.linger = 0
        self._topic = topic.encode()
        self._form: Form = "array" if form == "array" else "map"
        self._numbers = itertools.count()
        try:
            if "*" in endpoint:
                self._socket.bind(endpoint)
            else:
                self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"--kv-events {endpoint!r}: {error}") from error

    async def run(self, bridge: EngineBridge) -> None:
        """For ever. A subscription that has ended, because this loop was too slow, is followed by a new one."""
        while True:
            with bridge.subscribe() as subscription:
                async for frames in subscription.batches():
                    for frame in frames:
                        self.publish(frame)

    def publish(self, events: Events) -> None:
        """Never blocks."""
        payload = encode_batch(events, self._form, time.time())
        if payload is not None:
            number = next(self._numbers).to_bytes(8, "big")
            self._socket.send_multipart((self._topic, number, payload), zmq.DONTWAIT)

    def close(self) -> None:
        self._socket.close()
        self._context.term()
