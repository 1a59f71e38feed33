"""What the bridge sends to the engine."""

import asyncio
import multiprocessing

import pytest
from msgspec.structs import replace

from penstock.engine.messages import Cancel, Generate, Limits, Prefill, Started, decode_to_engine
from penstock.protocol import Error, Layout, Peer, Sample, Tokens
from penstock.worker.bridge import EngineBridge
from tests.worker.requests import request, run

LAYOUT = Layout(protocol=1, model="m", weights_version="1", kv_dtype="f32", groups=((1, 1, 1),), block_size=4)
STARTED = Started(Peer(generation="g", layout=LAYOUT, endpoints={}, num_blocks=9), Limits(100, 64, 4, 9), "none")


def test_how_far_a_caller_may_fall_behind_is_counted_per_sample() -> None:
    async def fill() -> list[object]:
        ours, theirs = multiprocessing.Pipe()
        bridge = EngineBridge(STARTED, max_behind=10, on_lost=lambda: None)
        await bridge.attach(ours)
        samples = tuple(Sample(index, 1) for index in range(64))
        with theirs, bridge.open(Generate(request(samples=samples)), 9.0) as stream:
            for step in range(10):
                for sample in samples:
                    stream.put(Tokens(sample.index, step, (1,)))
            assert not stream.ended
            stream.put(Tokens(0, 10, (1,)))
            assert stream.ended
            return await anext(stream.batches())

    assert run(fill) == [Error(code="overloaded", message="the caller fell 640 frames behind")]


def test_a_message_that_cannot_be_encoded_fails_its_own_call_only() -> None:
    async def send() -> list[type]:
        ours, theirs = multiprocessing.Pipe()
        bridge = EngineBridge(STARTED, max_behind=10, on_lost=lambda: None)
        await bridge.attach(ours)
        good = request()
        bad = replace(good, sampling=replace(good.sampling, top_k=2**64))
        with bridge.open(Generate(good), 9.0):  # all in one tick of the event loop
            with pytest.raises(OverflowError), bridge.open(Prefill(bad), 9.0):
                pass
            assert bridge.num_streams == 1
        assert bridge.idle.is_set()
        messages = decode_to_engine(await asyncio.to_thread(theirs.recv_bytes))
        theirs.close()
        return [type(message) for message in messages]

    assert run(send) == [Generate, Cancel]
