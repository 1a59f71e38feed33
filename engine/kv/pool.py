"""The block pool: who holds which KV block, which blocks a prefix hash names, and each block's epoch.

A block is held (referenced by sequences), cached (free, but its content still answers to a hash; evicted least recently
used first), leaving (evicted, but nothing was written over it yet) or free. No step is in flight when the engine frees,
so a freed block may be handed out at once. Knows no tensors.

Whoever chooses a worker for its cache goes by evictions that it has heard of, and its request takes a while. So a few
blocks are evicted ahead of need, and each eviction has a number: a request that was sent as of an earlier one still
finds the block, and one that was sent later does not. Both find what was predicted.
"""

import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from penstock.protocol import StoredBlock

_AHEAD = 16
"""At most one of so many blocks is evicted ahead."""
_PER_STEP = 0.99
"""How fast it is forgotten how many blocks steps have needed: by half in 70 steps."""


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens`."""
    return -(-num_tokens // block_size)


class BlockPool:
    """Reference counts, prefix cache, LRU eviction and epochs of `num_blocks` blocks.

    With `poison`, blocks are handed to it to be filled with NaN whenever they are allocated or freed uncached. Like
    any other write it changes their epochs first.
    """

    def __init__(self, num_blocks: int, *, poison: Callable[[Sequence[int]], None] | None = None) -> None:
        self.num_blocks = num_blocks
        # A random start per process: a ticket of a former life of this worker matches nothing.
        self.epochs: npt.NDArray[np.uint64] = np.full(num_blocks, secrets.randbits(64), dtype=np.uint64)
        self._refs = [0] * num_blocks
        self._stored: list[StoredBlock | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._free: deque[int] = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Cached blocks that somebody waits for."""
        self._leaving: OrderedDict[int, int] = OrderedDict()
        """Evicted blocks that still answer to a hash, and the numbers of their evictions."""
        self._most_ahead = num_blocks // _AHEAD
        self._allocated = self._usual = 0.0
        self.num_evictions = 0
        """Blocks that ever left the prefix cache."""
        self._wanted: dict[bytes, int] = {}
        self._expected: dict[bytes, int] = {}
        self._poison = poison
        self._new_stored: dict[bytes, StoredBlock] = {}
        self._new_removed: dict[bytes, None] = {}

    @property
    def num_free(self) -> int:
        """Blocks that allocate() can hand out now."""
        return len(self._free) + len(self._leaving) + self.num_evictable

    @property
    def num_evictable(self) -> int:
        """Of these, the ones in the prefix cache."""
        return len(self._cached) + len(self._kept)

    @property
    def num_held(self) -> int:
        """Blocks that somebody references."""
        return self.num_blocks - self.num_free

    def refs(self, block: int) -> int:
        """How many sequences hold `block`."""
        return self._refs[block]

    def match(self, hashes: Iterable[bytes], as_of: int = 0) -> list[int]:
        """The blocks of the longest cached run at the start of `hashes`, for whoever knows of the first `as_of`
        evictions. Takes no reference."""
        matched = []
        for block_hash in hashes:
            block = self._by_hash.get(block_hash)
            if block is None or self._leaving.get(block, as_of + 1) <= as_of:
                break
            matched.append(block)
        return matched

    def want(self, hashes: Iterable[bytes], as_of: int = 0) -> None:
        """Somebody waits who will acquire what is cached under these: it is evicted only when nothing else is left, and
        then what was wanted last goes first. Until `unwant`."""
        for name in hashes:
            self._wanted[name] = self._wanted.get(name, 0) + 1
            block = self._by_hash.get(name, -1)
            if self._leaving.get(block, as_of) > as_of:
                self._come_back(block)
                self._kept[block] = None
            elif block in self._cached:
                del self._cached[block]
                self._kept[block] = None

    def unwant(self, hashes: Iterable[bytes]) -> None:
        """Whoever wanted these waits no more."""
        for name in hashes:
            if not _count_down(self._wanted, name):
                block = self._by_hash.get(name, -1)
                if block in self._kept:
                    del self._kept[block]
                    self._cached[block] = None

    def expect(self, hashes: Iterable[bytes]) -> None:
        """Blocks of these hashes are being computed or pulled. Each is expected until `commit` or `give_up`."""
        for name in hashes:
            self._expected[name] = self._expected.get(name, 0) + 1

    def give_up(self, hashes: Iterable[bytes]) -> None:
        """Whoever expected these will not commit them, or has."""
        for name in hashes:
            _count_down(self._expected, name)

    def is_expected(self, name: bytes) -> bool:
        """Whether a block of this hash will soon be in the prefix cache."""
        return name in self._expected

    def num_unheld(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` acquire() would take out of the allocatable ones."""
        return sum(self._refs[block] == 0 for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Takes one reference to each of `blocks` (matched or already held)."""
        for block in blocks:
            if block in self._leaving:
                self._come_back(block)
            self._cached.pop(block, None)
            self._kept.pop(block, None)
            self._refs[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks for writing, evicting cached ones if need be. The caller has checked `num_free`."""
        blocks = []
        self._allocated += count
        for _ in range(count):
            if not (self._free or self._leaving):
                self._evict()
            if self._free:
                block = self._free.popleft()
            else:
                block, _ = self._leaving.popitem(last=False)
                self._unname(block)
            self._refs[block] = 1
            blocks.append(block)
        self._begin_write(blocks)
        return blocks

    def evict_ahead(self) -> None:
        """Call once per step. Has a few blocks leave the prefix cache before they are needed, but none that somebody
        waits for: as many as a step has needed lately."""
        self._usual = max(self._allocated, _PER_STEP * self._usual)
        self._allocated = 0.0
        while self._cached and len(self._free) + len(self._leaving) < min(self._usual, self._most_ahead):
            self._evict()

    def free(self, blocks: Sequence[int]) -> None:
        """Gives back one reference to each of `blocks`; one that nobody holds any more becomes allocatable."""
        for block in reversed(blocks):  # the tail of a sequence is evicted before its beginning
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._release(block)

    def commit(self, block: int, stored: StoredBlock) -> None:
        """Names a full, written block by its hash. A hash that another block answers to stays with that one."""
        self._expected.pop(stored.hash, None)
        before = self._by_hash.get(stored.hash, -1)
        if before in self._leaving:  # whoever computed this knew that it had been evicted
            del self._leaving[before]
            self._unname(before)
            self._release(before)
        if stored.hash not in self._by_hash and self._stored[block] is None:
            self._by_hash[stored.hash] = block
            self._stored[block] = stored
            self._tell_stored(stored)

    def disown(self, blocks: Iterable[int]) -> None:
        """Takes held blocks out of the prefix cache: what they hold is not to be trusted."""
        for block in blocks:
            if self._stored[block] is not None:
                self._tell_removed(block)
                self._unname(block)

    def snapshot(self) -> list[StoredBlock]:
        """All blocks in the prefix cache, parents before their children."""
        in_order: dict[bytes, StoredBlock] = {}
        named = {name: block for name, block in self._by_hash.items() if block not in self._leaving}
        for name in named:
            chain = []
            while name not in in_order and (block := named.get(name)) is not None:
                stored = self._stored[block]
                assert stored is not None
                chain.append(stored)
                name = stored.parent
            in_order.update((stored.hash, stored) for stored in reversed(chain))
        return list(in_order.values())

    @property
    def has_removed(self) -> bool:
        """Whether blocks left the prefix cache since the last `drain_events`."""
        return bool(self._new_removed)

    def drain_events(self) -> tuple[tuple[StoredBlock, ...], tuple[bytes, ...]]:
        """How the prefix cache differs from what it was at the last call: blocks that it has now, and has no more."""
        events = tuple(self._new_stored.values()), tuple(self._new_removed)
        self._new_stored, self._new_removed = {}, {}
        return events

    def _begin_write(self, blocks: Sequence[int]) -> None:
        """Whatever is about to overwrite blocks comes through here: the only place that changes single epochs."""
        self.epochs[blocks] += np.uint64(1)
        if self._poison is not None:
            self._poison(blocks)

    def _release(self, block: int) -> None:
        stored = self._stored[block]
        if stored is not None:
            (self._kept if stored.hash in self._wanted else self._cached)[block] = None
            return
        self._free.append(block)
        if self._poison is not None:
            self._begin_write([block])

    def _evict(self) -> None:
        """The least recently used block leaves; of those that somebody waits for, the one that was wanted last."""
        block, _ = self._cached.popitem(last=False) if self._cached else self._kept.popitem()
        self._tell_removed(block)
        self._leaving[block] = self.num_evictions

    def _come_back(self, block: int) -> None:
        """Somebody did not know that it was leaving."""
        del self._leaving[block]
        stored = self._stored[block]
        assert stored is not None
        self._tell_stored(stored)

    def _unname(self, block: int) -> None:
        stored = self._stored[block]
        assert stored is not None
        del self._by_hash[stored.hash]
        self._stored[block] = None

    def _tell_stored(self, stored: StoredBlock) -> None:
        if stored.hash in self._new_removed:
            del self._new_removed[stored.hash]
        else:
            self._new_stored[stored.hash] = stored

    def _tell_removed(self, block: int) -> None:
        self.num_evictions += 1
        stored = self._stored[block]
        assert stored is not None
        if self._new_stored.pop(stored.hash, None) is None:
            self._new_removed[stored.hash] = None


def _count_down(counts: dict[bytes, int], name: bytes) -> int:
    """One less of `name`; how many are left."""
    left = max(0, counts.pop(name, 0) - 1)
    if left:
        counts[name] = left
    return left
