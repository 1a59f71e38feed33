"""The block pool: who holds which KV block, which blocks a prefix hash names, and each block's epoch.

A block is held (referenced by sequences), cached (free, but its content still answers to a hash; evicted least recently
used first) or free. No step is in flight when the engine frees, so a freed block may be handed out at once. Knows no
tensors.
"""

import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from penstock.protocol import StoredBlock


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
        self._wanted: dict[bytes, int] = {}
        self._expected: dict[bytes, int] = {}
        self._poison = poison
        self._new_stored: dict[bytes, StoredBlock] = {}
        self._new_removed: dict[bytes, None] = {}

    @property
    def num_free(self) -> int:
        """Blocks that allocate() can hand out now."""
        return len(self._free) + self.num_evictable

    @property
    def num_evictable(self) -> int:
        """Of these, the ones that still answer to a hash."""
        return len(self._cached) + len(self._kept)

    @property
    def num_held(self) -> int:
        """Blocks that somebody references."""
        return self.num_blocks - self.num_free

    def refs(self, block: int) -> int:
        """How many sequences hold `block`."""
        return self._refs[block]

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached run at the start of `hashes`. Takes no reference."""
        matched = []
        for block_hash in hashes:
            block = self._by_hash.get(block_hash)
            if block is None:
                break
            matched.append(block)
        return matched

    def want(self, hashes: Iterable[bytes]) -> None:
        """Somebody waits who will acquire what is cached under these: it is evicted only when nothing else is left, and
        then what was wanted last goes first. Until `unwant`."""
        for name in hashes:
            self._wanted[name] = self._wanted.get(name, 0) + 1
            block = self._by_hash.get(name, -1)
            if block in self._cached:
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
            self._cached.pop(block, None)
            self._kept.pop(block, None)
            self._refs[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks for writing, evicting cached ones if need be. The caller has checked `num_free`."""
        blocks = []
        for _ in range(count):
            if self._free:
                block = self._free.popleft()
            else:
                block, _ = self._cached.popitem(last=False) if self._cached else self._kept.popitem()
                self._forget(block)
            self._refs[block] = 1
            blocks.append(block)
        self._begin_write(blocks)
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """Gives back one reference to each of `blocks`; one that nobody holds any more becomes allocatable."""
        for block in reversed(blocks):  # the tail of a sequence is evicted before its beginning
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._release(block)

    def commit(self, block: int, stored: StoredBlock) -> None:
        """Names a full, written block by its hash. A hash that another block answers to stays with that one."""
        self._expected.pop(stored.hash, None)
        if stored.hash not in self._by_hash and self._stored[block] is None:
            self._by_hash[stored.hash] = block
            self._stored[block] = stored
            if stored.hash in self._new_removed:
                del self._new_removed[stored.hash]
            else:
                self._new_stored[stored.hash] = stored

    def disown(self, blocks: Iterable[int]) -> None:
        """Takes held blocks out of the prefix cache: what they hold is not to be trusted."""
        for block in blocks:
            if self._stored[block] is not None:
                self._forget(block)

    def snapshot(self) -> list[StoredBlock]:
        """All blocks in the prefix cache, parents before their children."""
        in_order: dict[bytes, StoredBlock] = {}
        for name in self._by_hash:
            chain = []
            while name not in in_order and (block := self._by_hash.get(name)) is not None:
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

    def _forget(self, block: int) -> None:
        stored = self._stored[block]
        assert stored is not None
        del self._by_hash[stored.hash]
        self._stored[block] = None
        if self._new_stored.pop(stored.hash, None) is None:
            self._new_removed[stored.hash] = None


def _count_down(counts: dict[bytes, int], name: bytes) -> int:
    """One less of `name`; how many are left."""
    left = max(0, counts.pop(name, 0) - 1)
    if left:
        counts[name] = left
    return left
