"""Subscribers end with the engine's truth, and no round of its loop is long busy with telling them."""

import random
from dataclasses import dataclass, field

import pytest

from penstock.engine.feed import SNAPSHOT_S, Feed
from penstock.engine.kv.pool import BlockPool
from penstock.protocol import Events, Load, StoredBlock
from penstock.worker.events import Subscription

ONE_BLOCK_PER_FRAME = 65_536
"""Tokens of a block so large that a frame has no room for another."""
ROOT = b"root"


class Clock:
    """Each look at it takes 3 ms."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.003
        return self.now_s


PARTS_PER_ROUND = int(SNAPSHOT_S / 0.003)


@dataclass
class Reader:
    """A subscriber: its frames come as a worker's front passes them on."""

    subscription: Subscription = field(default_factory=lambda: Subscription("g"))
    held: set[bytes] = field(default_factory=set)
    num_snapshots: int = 0

    def take(self, frame: Events) -> None:
        self.subscription.put(frame, None)
        frames = self.subscription._frames
        while frames:
            self.apply(frames.popleft())

    def apply(self, frame: Events) -> None:
        if frame.snapshot and not frame.part:
            self.held.clear()
            self.num_snapshots += 1
        for name in frame.removed:
            self.held.remove(name)
        for block in frame.stored:
            assert block.hash not in self.held
            self.held.add(block.hash)


class Engine:
    """A pool that is used, and the rounds of its loop."""

    def __init__(self, num_blocks: int = 40, seed: int = 0) -> None:
        self.pool = BlockPool(num_blocks)
        self.feed = Feed(self.pool, ONE_BLOCK_PER_FRAME, "g", Load, clock=Clock())
        self.readers: list[Reader] = []
        self._rng = random.Random(seed)
        self._count = 0

    def read(self) -> Reader:
        self.feed.subscribe()
        self.readers.append(Reader())
        return self.readers[-1]

    def store(self) -> None:
        """Another block, at the end of some chain or of none; the cache forgets what was used longest ago."""
        chains = self.pool.snapshot()
        parent = self._rng.choice(chains).hash if chains and self._rng.random() < 0.8 else ROOT
        before = self.pool.match([parent])
        self.pool.acquire(before)
        [block] = self.pool.allocate(1)
        self._count += 1
        self.pool.commit(block, StoredBlock(b"%d" % self._count, parent, ()))
        self.pool.free([*before, block])

    def round(self, num_stored: int = 0) -> list[Events]:
        frames = list(self.feed.snapshot())
        for _ in range(num_stored):
            self.store()
        frames += self.feed.changes()
        for frame in frames:
            for reader in self.readers:
                reader.take(frame)
        return frames

    @property
    def truth(self) -> set[bytes]:
        return {block.hash for block in self.pool.snapshot()}


@pytest.mark.parametrize("seed", range(20))
def test_whoever_comes_whenever_ends_with_what_is_cached(seed: int) -> None:
    engine, rng = Engine(seed=seed), random.Random(seed)
    for _ in range(150):
        if rng.random() < 0.05:
            engine.read()
        engine.round(rng.randrange(3))
    assert len(engine.readers) > 2
    while engine.feed.is_behind:
        engine.round()
    engine.round()
    assert len(engine.truth) == 40
    for reader in engine.readers:
        assert reader.held == engine.truth
        assert reader.num_snapshots == 1


def test_a_round_sends_a_few_parts_of_a_snapshot_and_no_change_between_them() -> None:
    engine = Engine()
    engine.round(40)
    reader = engine.read()
    rounds = []
    while engine.feed.is_behind:
        rounds.append(engine.round(1))
    assert all(len(frames) == PARTS_PER_ROUND for frames in rounds[:-1])
    frames = [frame for frames in rounds for frame in frames]
    assert [frame.snapshot for frame in frames] == [True] * 40 + [False] * len(rounds), "what has changed comes last"
    engine.round()
    assert reader.held == engine.truth


def test_those_who_come_while_a_snapshot_is_sent_share_the_next() -> None:
    engine = Engine()
    engine.round(40)
    engine.read()
    engine.round()
    engine.read()
    engine.read()
    begun = 1
    while engine.feed.is_behind:
        begun += sum(frame.snapshot and not frame.part for frame in engine.round())
    assert begun == 2
    assert [reader.held for reader in engine.readers] == [engine.truth] * 3


def test_while_nobody_reads_nothing_is_kept() -> None:
    engine = Engine()
    assert engine.round(40) == []
    assert engine.pool.drain_events() == ((), ())
    assert not engine.feed.is_behind
