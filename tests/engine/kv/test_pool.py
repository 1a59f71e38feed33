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


def full_pool() -> BlockPool:
    """Of 32 blocks, all cached, a chain of three as the least recently used; two are evicted ahead."""
    pool = BlockPool(32)
    for names in ("abc", [str(number) for number in range(29)]):
        blocks = pool.allocate(len(names))
        for block, name in zip(blocks, names, strict=True):
            pool.commit(block, stored(name))
        pool.free(blocks)
    pool.drain_events()
    pool.evict_ahead()
    return pool


ABC = (b"a", b"b", b"c")


def test_what_is_evicted_ahead_is_found_by_those_who_do_not_know() -> None:
    pool = full_pool()
    assert pool.drain_events() == ((), (b"c", b"b"))
    assert (pool.num_evictions, pool.num_free, pool.num_evictable) == (2, 32, 30)
    assert [len(pool.match(ABC, as_of)) for as_of in range(4)] == [3, 2, 1, 1], "c was the first to leave"
    assert {b"b", b"c"}.isdisjoint(block.hash for block in pool.snapshot())


def test_what_is_found_while_it_leaves_comes_back() -> None:
    pool, waited = full_pool(), full_pool()
    blocks = pool.match(ABC)
    pool.acquire(blocks)
    pool.free(blocks)
    waited.want(ABC, as_of=1)
    waited.drain_events()
    waited.allocate(29)
    assert len(pool.match(ABC, as_of=9)) == 3
    assert pool.drain_events() == ((), ()), "it was never told that they leave"
    assert len(waited.match(ABC, as_of=9)) == 2, "who waits did not count on c"


def test_what_leaves_is_written_over_first_and_in_order() -> None:
    pool = full_pool()
    pool.drain_events()
    pool.allocate(1)
    assert len(pool.match(ABC)) == 2
    pool.allocate(1)
    assert len(pool.match(ABC)) == 1
    assert pool.drain_events() == ((), ()), "that was told before"


def test_what_is_computed_again_takes_the_place_of_what_leaves() -> None:
    pool = full_pool()
    pool.drain_events()
    pool.acquire(pool.match([b"a"], as_of=2))
    [block] = pool.allocate(1)  # c's
    pool.commit(block, stored("b", "a"))
    assert pool.match(ABC, as_of=2)[1:] == [block]
    assert pool.drain_events() == ((stored("b", "a"),), ())
    assert pool.num_free == 30


def test_no_more_is_evicted_ahead_than_steps_have_needed_lately() -> None:
    pool = BlockPool(320)
    for number in range(320):
        [block] = pool.allocate(1)
        pool.commit(block, stored(str(number)))
        pool.free([block])
        pool.evict_ahead()
    assert pool.num_evictions == 1
    pool.free(pool.allocate(9))
    pool.evict_ahead()
    assert pool.num_evictions == 9, "eight without notice, of which nine are free now"
    for _ in range(300):
        pool.allocate(1)
        pool.evict_ahead()
    assert pool.num_free - pool.num_evictable == 1


def test_a_small_pool_evicts_nothing_ahead() -> None:
    pool = BlockPool(4)
    [block] = pool.allocate(1)
    pool.commit(block, stored("a"))
    pool.free([block])
    pool.allocate(3)
    pool.evict_ahead()
    assert pool.num_evictions == 0


class PoolMachine(RuleBasedStateMachine):
    """Random holders; the invariants say who owns what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(10)
        self.pool._most_ahead = 3
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
        """A new content, or one of the first ones again."""
        block = data.draw(st.sampled_from(data.draw(st.sampled_from(self.held))))
        self.names += 1
        self.pool.commit(block, stored(str(data.draw(st.sampled_from([self.names, self.names % 5])))))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pool.free(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        names = sorted(self.pool._by_hash)
        if names:
            blocks = self.pool.match([data.draw(st.sampled_from(names))], self.as_of(data))
            self.pool.acquire(blocks)
            if blocks:  # else it left by then
                self.held.append(blocks)

    @rule()
    def evict_ahead(self) -> None:
        self.pool.evict_ahead()
        ahead = min(3, self.pool._usual, self.pool.num_free - len(self.pool._kept))
        assert self.pool.num_free - self.pool.num_evictable >= ahead

    def as_of(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, self.pool.num_evictions))

    @rule(data=st.data(), name=st.integers(0, 30), wanted=st.booleans())
    def want(self, data: st.DataObject, name: int, wanted: bool) -> None:
        hashes = [b"%d" % name]
        if wanted:
            self.pool.want(hashes, self.as_of(data))
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
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40)


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
