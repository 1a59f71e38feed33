"""KV events as vLLM's subscribers decode them: the types below are what such a subscriber declares."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import pytest
import zmq
import zmq.asyncio

from penstock.errors import ConfigError
from penstock.listen import free_port
from penstock.protocol import Events, StoredBlock
from penstock.worker.bridge import EngineBridge
from penstock.worker.events import Subscription
from penstock.worker.vllm_events import encode_batch
from penstock.worker.zmq_publisher import PAUSE_S, ZmqPublisher
from tests.router.flow.virtual_time import run
from tests.worker.processes import running_worker


class ArrayStored(msgspec.Struct, array_like=True, tag="BlockStored"):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None


class ArrayRemoved(msgspec.Struct, array_like=True, tag="BlockRemoved"):
    block_hashes: list[int]
    medium: str | None


class ArrayCleared(msgspec.Struct, array_like=True, tag="AllBlocksCleared"):
    pass


class MapStored(msgspec.Struct, tag="BlockStored"):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None


class MapRemoved(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[int]
    medium: str | None


class MapCleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class ArrayBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[ArrayStored | ArrayRemoved | ArrayCleared]
    data_parallel_rank: int | None = None


class MapBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[MapStored | MapRemoved | MapCleared]
    data_parallel_rank: int | None = None


FORMS: tuple[tuple[Literal["array", "map"], Any], ...] = (("array", ArrayBatch), ("map", MapBatch))


def name(number: int) -> bytes:
    """A block's hash, 128 bits."""
    return number.to_bytes(16, "big")


def decode(events: Events, form: Literal["array", "map"], batch: Any) -> list[dict[str, Any]]:
    payload = encode_batch(events, form, 12.5)
    assert payload is not None
    found = msgspec.msgpack.decode(payload, type=batch)
    assert (found.ts, found.data_parallel_rank) == (12.5, 0)
    return [msgspec.structs.asdict(event) for event in found.events]


@pytest.mark.parametrize(("form", "batch"), FORMS)
def test_subscribers_find_runs_of_blocks_with_tokens_parents_and_salts(
    form: Literal["array", "map"], batch: Any
) -> None:
    stored = (
        StoredBlock(name(1), name(99), (1, 2), salt="s"),
        StoredBlock(name(2), name(1), (3, 4)),
        StoredBlock(name(3), name(1), (5, 6)),
        StoredBlock(name(4), name(99), (7, 8), salt=""),
    )
    first, sibling, unsalted = decode(Events(generation="g", sequence=5, stored=stored), form, batch)
    assert (first["block_hashes"], first["parent_block_hash"], first["token_ids"]) == ([1, 2], None, [1, 2, 3, 4])
    assert (first["block_size"], first["extra_keys"]) == (2, [("s",), None])
    assert (sibling["block_hashes"], sibling["parent_block_hash"], sibling["extra_keys"]) == ([3], 1, None)
    assert (unsalted["block_hashes"], unsalted["parent_block_hash"], unsalted["extra_keys"]) == ([4], None, None)


@pytest.mark.parametrize(("form", "batch"), FORMS)
def test_evictions_come_before_what_took_their_place(form: Literal["array", "map"], batch: Any) -> None:
    events = Events(
        generation="g", sequence=5, stored=(StoredBlock(name(1), name(9), (1,)),), removed=(name(2**70 + 7),)
    )
    removed, stored = decode(events, form, batch)
    assert (removed["block_hashes"], removed["medium"]) == ([7], "GPU")
    assert stored["block_hashes"] == [1]


@pytest.mark.parametrize(("form", "batch"), FORMS)
def test_a_snapshot_clears_what_was_known_once(form: Literal["array", "map"], batch: Any) -> None:
    block = StoredBlock(name(1), name(9), (1,), salt="")
    parts = [Events(generation="g", sequence=0, snapshot=True, part=part, stored=(block,)) for part in (0, 1)]
    assert [len(decode(part, form, batch)) for part in parts] == [2, 1]


def test_frames_without_blocks_are_not_published() -> None:
    assert encode_batch(Events(generation="g", sequence=3), "map", 0.0) is None


def test_an_endpoint_that_cannot_be_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match=r"--kv-events 'tcp://\*:port'"):
        ZmqPublisher("tcp://*:port", "", "map")


@contextmanager
def subscriber(topic: bytes) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    found = context.socket(zmq.SUB)
    found.linger = 0
    found.subscribe(topic)
    try:
        yield found
    finally:
        found.close()
        context.term()


def receive(socket: zmq.Socket[bytes]) -> tuple[bytes, int, list[Any]]:
    """Topic, number and events of the next batch."""
    assert socket.poll(5000), "nothing came"
    topic, number, payload = socket.recv_multipart()
    batch = msgspec.msgpack.decode(payload, type=MapBatch)
    assert abs(batch.ts - time.time()) < 60
    return topic, int.from_bytes(number, "big"), batch.events


def assert_whole_cache(events: list[Any]) -> None:
    cleared, stored = events
    assert isinstance(cleared, MapCleared)
    assert stored.token_ids == [1, 2, 3, 4]


def test_a_worker_connects_to_a_subscriber_that_listens(tmp_path: Path) -> None:
    """As llm-d has it."""
    with subscriber(b"kv@") as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        flags = ("--kv-events", f"tcp://127.0.0.1:{port}", "--kv-events-topic", "kv@here:1@tiny")
        with running_worker(tmp_path, "decode", *flags):
            topic, _, events = receive(socket)
    assert topic == b"kv@here:1@tiny"
    assert_whole_cache(events)


def test_every_subscriber_of_a_worker_that_listens_begins_with_the_whole_cache(tmp_path: Path) -> None:
    port = free_port()
    with running_worker(tmp_path, "decode", "--kv-events", f"tcp://*:{port}"), subscriber(b"") as first:
        first.connect(f"tcp://127.0.0.1:{port}")
        _, number, events = receive(first)
        assert_whole_cache(events)
        with subscriber(b"") as second:
            second.connect(f"tcp://127.0.0.1:{port}")
            assert_whole_cache(receive(second)[2])
        _, again, events = receive(first)
        assert_whole_cache(events)
        assert again == number + 1


class Bridge:
    """An engine whose prefix cache is one block, as its front sees it. It does not answer its first subscribers."""

    def __init__(self, block: StoredBlock, num_unanswered: int = 0) -> None:
        self.block = block
        self.num_unanswered = num_unanswered
        self.subscribed_at: list[float] = []
        self.subscribed = asyncio.Event()
        self.subscription = Subscription("g")

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        self.subscribed_at.append(asyncio.get_running_loop().time())
        assert len(self.subscribed_at) < 10, "it subscribes again and again"
        self.subscribed.set()
        self.subscription = Subscription("g")
        if len(self.subscribed_at) > self.num_unanswered:
            self.subscription.put(Events(generation="g", sequence=0, snapshot=True, stored=(self.block,)), None)
        yield self.subscription


def test_what_cannot_be_published_is_told_of_and_tried_again_after_a_pause(caplog: pytest.LogCaptureFixture) -> None:
    bridge = Bridge(StoredBlock(name(1), name(9), (2**65,)))  # no such integer in msgpack

    async def fail_for(seconds: float) -> None:
        publisher = ZmqPublisher("tcp://127.0.0.1:*", "", "map")
        publishing = asyncio.create_task(publisher.run(cast("EngineBridge", bridge)))
        await asyncio.sleep(seconds)
        publishing.cancel()
        await asyncio.wait([publishing])
        publisher.close()

    run(fail_for(3.5 * PAUSE_S))
    assert bridge.subscribed_at == pytest.approx([number * PAUSE_S for number in range(4)])
    assert [record.message.split(";")[0] for record in caplog.records] == ["KV events could not be published"] * 4
    assert all(record.exc_info for record in caplog.records)


def test_subscribers_that_come_together_are_told_together() -> None:
    bridge = Bridge(StoredBlock(name(1), name(9), (1, 2, 3, 4), salt=""), num_unanswered=1)
    change = Events(generation="g", sequence=1, removed=(name(1),))

    async def listen(*subscribers: zmq.asyncio.Socket) -> None:
        port = free_port()
        publisher = ZmqPublisher(f"tcp://*:{port}", "", "map")
        publishing = asyncio.create_task(publisher.run(cast("EngineBridge", bridge)))
        await bridge.subscribed.wait()
        for each in subscribers:
            each.subscribe(b"")
            each.connect(f"tcp://127.0.0.1:{port}")
        found = [await each.recv_multipart() for each in subscribers]
        assert len({bytes(number) for _, number, _ in found}) == 1, "one batch for all"
        bridge.subscription.put(change, None)
        for each in subscribers:
            _, number, payload = await each.recv_multipart()
            assert int.from_bytes(number, "big") == int.from_bytes(found[0][1], "big") + 1
            [removed] = msgspec.msgpack.decode(payload, type=MapBatch).events
            assert isinstance(removed, MapRemoved)
        publishing.cancel()
        await asyncio.wait([publishing])
        publisher.close()

    with zmq.asyncio.Context() as context:
        sockets = [context.socket(zmq.SUB) for _ in range(3)]
        asyncio.run(listen(*sockets))
        for each in sockets:
            each.close(linger=0)
