"""Publishes vLLM's KV events over ZMQ: three frames, topic, number of the batch (8 bytes, big-endian) and msgpack.

The only module that imports zmq. vLLM leaves it to late subscribers to ask for what they missed. Here every new
subscriber has the whole prefix cache published again, after an event that clears it (an XPUB socket hears of
subscribers), so nobody is late. It goes to the others too: an XPUB socket speaks to all who want its topic.
"""

import asyncio
import itertools
import logging
import time

import zmq
import zmq.asyncio

from penstock.errors import ConfigError
from penstock.protocol import Events
from penstock.worker.bridge import EngineBridge
from penstock.worker.vllm_events import Form, encode_batch

log = logging.getLogger(__name__)

PAUSE_S = 1.0
"""Before the whole cache is published once more: those who subscribe together are told together."""
_MOST_BEHIND = 100_000
"""Batches that wait for a slow subscriber (vLLM's default); then it misses some, and sees so by their numbers."""
_SUBSCRIBED = b"\x01"


class ZmqPublisher:
    """One per worker."""

    def __init__(self, endpoint: str, topic: str, form: str) -> None:
        """Listens at an endpoint with a star (`tcp://*:5557`), else connects to it, as vLLM does.

        Raises ConfigError.
        """
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.set_hwm(_MOST_BEHIND)
        self._socket.linger = 0
        self._socket.xpub_verbose = True  # also tell of the second subscriber to the same topic
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
        """For ever: everything there is, then each change; after a pause again from the beginning, for a newcomer,
        where the engine's subscription has ended because this loop was too slow, and where publishing failed."""
        while True:
            try:
                await self._tell(bridge)
            except Exception:
                log.exception("KV events could not be published; everything is, once more, in %g s", PAUSE_S)
            await asyncio.sleep(PAUSE_S)

    async def publish(self, events: Events) -> None:
        """Never waits for a subscriber."""
        payload = encode_batch(events, self._form, time.time())
        if payload is not None:
            number = next(self._numbers).to_bytes(8, "big")
            await self._socket.send_multipart((self._topic, number, payload))

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    async def _tell(self, bridge: EngineBridge) -> None:
        """Until somebody comes who has missed the beginning."""
        while await self._socket.poll(0):
            await self._socket.recv()  # who came before is told with all others
        with bridge.subscribe() as subscription:
            newcomer = asyncio.create_task(self._newcomer())
            newcomer.add_done_callback(lambda _: subscription.close())
            try:
                async for frames in subscription.batches():
                    for frame in frames:
                        await self.publish(frame)
            finally:
                newcomer.cancel()
                await asyncio.gather(newcomer, return_exceptions=True)
        if not newcomer.cancelled():
            newcomer.result()

    async def _newcomer(self) -> None:
        """Returns when somebody has subscribed to the topic."""
        while True:
            message = await self._socket.recv()
            if message.startswith(_SUBSCRIBED) and self._topic.startswith(message[1:]):
                return
