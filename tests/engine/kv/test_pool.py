"""The block pool against its promises, and against a model of it under random operations."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.engine.kv.pool import BlockPool
from penstock.protocol import StoredBlock


def stored(name: str, parent: str = "root") -> StoredBlock:
    return StoredBlock(name.encode(), parent.encode(), (1, 2, 3))


def test_match_finds_the_longest_run_and_takes_no_reference() -> None:
    pool = BlockPool(8)
    blocks = pool.allocate(3)
    for block, name in zip(blocks, "abc", strict=True):
        pool.commit(block, stored(name))
    pool.free(blocks)
    assert pool.match([b"a", b"b", b"x", b"c"]) == blocks[:2]
    assert pool.num_held == 0


def test_eviction_takes_the_least_recently_freed_and_tails_before_beginnings() -> None:
    pool = BlockPool(4)
    old, new = pool.allocate(2), pool.allocate(2)
    for block, name in zip(old + new, "abcd", strict=True):
        pool.commit(block, stored(name))
    pool.free(old)
    pool.free(new)
    pool.allocate(1)
    assert pool.match([b"b"]) == []
    assert pool.match([b"a"]) == [old[0]]
    pool.allocate(2)
    assert pool.match([b"c"]) == [new[0]]


def test_every_allocation_changes_the_epoch_and_nothing_else_does() -> None:
    pool = BlockPool(3)
    before = pool.epochs.copy()
    [block] = pool.allocate(1)
    assert pool.epochs[block] != before[block]
    written = pool.epochs.copy()
    pool.commit(block, stored("a"))
    pool.free([block])
    pool.acquire(pool.match([b"a"]))
    pool.free([block])
    assert np.array_equal(pool.epochs, written)
    pool.allocate(3)
    assert (pool.epochs != written).all()


def test_the_same_content_twice_is_cached_once() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.commit(first, stored("a"))
    pool.commit(second, stored("a"))
    pool.free([first, second])
    assert pool.match([b"a"]) == [first]
    assert pool.drain_events() == ((stored("a"),), ())
    assert pool.num_free == 2


def test_two_pools_start_at_different_epochs() -> None:
    assert BlockPool(1).epochs[0] != BlockPool(1).epochs[0]


class PoolMachine(RuleBasedStateMachine):
    """Random holders; the invariants say who owns what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(10)
        self.held: list[list[int]] = []
        self.names = 0
        self.known: set[bytes] = set()

    @rule(count=st.integers(1, 4))
    def allocate(self, count: int) -> None:
        if count <= self.pool.num_free:
            blocks = self.pool.allocate(count)
            assert all(block not in other for other in self.held for block in blocks)
            self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(data.draw(st.sampled_from(self.held))))
        self.names += 1
        self.pool.commit(block, stored(str(self.names)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pool.free(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        cached = self.pool.snapshot()
        if cached:
            blocks = self.pool.match([data.draw(st.sampled_from(cached)).hash])
            self.pool.acquire(blocks)
            self.held.append(blocks)

    @rule(name=st.integers(1, 30), wanted=st.booleans())
    def want(self, name: int, wanted: bool) -> None:
        hashes = [b"%d" % name]
        if wanted:
            self.pool.want(hashes)
        else:
            self.pool.unwant(hashes)

    @invariant()
    def cached_blocks_are_apart_by_whether_they_are_wanted(self) -> None:
        hashes = {block: found.hash for block, found in enumerate(self.pool._stored) if found is not None}
        assert all(hashes[block] in self.pool._wanted for block in self.pool._kept)
        assert not any(hashes[block] in self.pool._wanted for block in self.pool._cached)

    @invariant()
    def references_are_exact(self) -> None:
        counts = [sum(block in blocks for blocks in self.held) for block in range(10)]
        assert [self.pool.refs(block) for block in range(10)] == counts
        assert self.pool.num_held == sum(count > 0 for count in counts)
        assert self.pool.num_free == sum(count == 0 for count in counts)

    @invariant()
    def events_tell_the_whole_cache(self) -> None:
        new, removed = self.pool.drain_events()
        for block_hash in removed:
            self.known.discard(block_hash)
        assert not {each.hash for each in new} & set(removed)
        self.known |= {each.hash for each in new}
        assert self.known == {each.hash for each in self.pool.snapshot()}


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_somebody_waits_for_is_evicted_last_and_the_latest_wish_first() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(4)
    for block, name in zip(blocks, "abcd", strict=True):
        pool.commit(block, stored(name))
    pool.free(blocks)
    pool.want([b"a", b"x"])
    pool.want([b"d"])
    pool.allocate(2)
    assert [bool(pool.match([name.encode()])) for name in "abcd"] == [True, False, False, True]
    pool.allocate(1)
    assert pool.match([b"a"]), "wanted before d"
    pool.unwant([b"a", b"x"])
    pool.unwant([b"d"])
    assert (pool._wanted, dict(pool._kept), list(pool._cached)) == ({}, {}, [blocks[0]])


def test_wanted_blocks_stay_wanted_while_they_are_held() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(2)
    for block, name in zip(blocks, "ab", strict=True):
        pool.commit(block, stored(name))
    pool.want([b"b"])
    pool.want([b"b"])
    pool.free(blocks)
    pool.unwant([b"b"])
    pool.acquire([blocks[1]])
    pool.free([blocks[1]])
    pool.allocate(1)
    assert pool.match([b"b"]) == [blocks[1]]
    assert pool.num_free == pool.num_evictable == 1
