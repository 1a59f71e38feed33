"""What one worker has in its prefix cache, by its own account: its event frames, applied to the table of holders.

One mirror is one subscription: it begins with a snapshot and ends at the first frame that does not follow from the one
before. A worker is believed only about itself, and only as long as what it says makes sense; nothing it says can touch
what other workers hold. Pure; knows no connections.
"""

import math
import struct
from collections.abc import Sequence
from typing import Any

from penstock.errors import PenstockError
from penstock.protocol import Events, Load, StepTiming, StoredBlock
from penstock.router.index.holders import Holders
from penstock.router.index.keys import MASK, block_key, name_key, packer, root_key

MOST_ORPHANS = 4096
"""Blocks whose parent is not there. They match nothing until it is; more of them are not remembered."""
LONGEST_BLOCK = 2**16
"""Tokens of a block. No engine has longer ones."""
LONGEST_STEP_S = 3600.0
MOST_REQUESTS = 10**6
"""That one worker has, in whatever state."""
MOST_TIMINGS = 256
"""In one frame: workers send one after each step. Learning from so many takes a few milliseconds."""


class Gap(PenstockError):
    """A frame is missing, or came twice or too late: only a new snapshot helps."""


class BadEvents(PenstockError):
    """What the worker says cannot be true."""


class Mirror:
    """The blocks of one worker under one bit of the table."""

    def __init__(self, holders: Holders) -> None:
        self.bit = holders.take_bit()
        self.generation = ""
        self.block_size = 0
        """0 while unknown, and of a worker that caches no prefixes."""
        self.is_complete = False
        """Whether the snapshot is there in all its parts."""
        self.is_installed = False
        """Whether it is what placement sees of the worker, or was."""
        self.is_retired = False
        self.num_dropped = 0
        """Blocks that were not remembered for want of room."""
        self.evictions = 0
        """The worker's, as far as they are known here."""
        self.known: dict[int, int] = {}
        """The worker's name of each block -> ours."""
        self.expected: dict[int, Any] = {}
        """Keys for which the worker's bit is set although it has said nothing of them yet."""
        self._holders = holders
        self._orphans = _Orphans()
        self._sequence = -1

    def begin(self, frame: Events) -> None:
        """Checks that `frame` is the next one; then `remove` and `store` what it tells. Raises Gap or BadEvents."""
        first = self._sequence < 0
        if first:
            self.generation, self.block_size = frame.generation, frame.block_size
            if not frame.snapshot or frame.part != 0:
                raise Gap("the stream does not begin with a snapshot")
            if not 0 <= self.block_size <= LONGEST_BLOCK:
                raise BadEvents(f"blocks of {self.block_size} tokens")
        elif frame.generation != self.generation:
            raise Gap(f"generation {frame.generation} follows {self.generation}")
        elif frame.sequence != self._sequence + 1:
            raise Gap(f"frame {frame.sequence} follows frame {self._sequence}")
        elif self.is_complete and frame.snapshot:
            raise Gap("a second snapshot")
        self._sequence = frame.sequence
        if frame.cleared:
            raise Gap("the cache was cleared")
        check_report(frame)

    def end(self, frame: Events) -> None:
        """`frame` has been applied."""
        self.evictions = max(self.evictions, frame.evictions)
        if frame.snapshot and not frame.more:
            self.is_complete = True
        if frame.load is not None and 0 < frame.load.num_blocks < len(self.known):
            raise BadEvents(f"it says that it holds {len(self.known)} blocks of its {frame.load.num_blocks}")

    def remove(self, names: Sequence[bytes]) -> None:
        """The worker evicted these blocks."""
        known, discard, bit = self.known, self._holders.discard, self.bit
        for name in names:
            key = known.pop(name_key(name), None)
            if key is None:
                self._orphans.discard(name)
            else:
                discard(key, bit)

    def store(self, blocks: Sequence[StoredBlock], most: int) -> None:
        """The worker holds these blocks now; beyond `most` they are dropped. Raises BadEvents."""
        known, size = self.known, self.block_size
        try:
            pack = packer(size)
            for block in blocks:
                if block.salt is not None:
                    parent = root_key(block.salt)
                elif (found := known.get(hash(block.parent) & MASK)) is not None:
                    parent = found
                else:
                    self._orphans.add(block)
                    continue
                self._add(hash(block.hash) & MASK, block_key(parent, pack(*block.tokens)), most)
                if self._orphans:
                    self._adopt(block.hash, most)
        except struct.error as error:
            raise BadEvents(f"a block that is not {size} token ids: {error}") from None

    def drop(self, count: int) -> int:
        """Forgets so many blocks for want of room, the last ones first: none of them is the parent of one that stays.

        Returns `count`.
        """
        for _ in range(count):
            self._holders.discard(self.known.popitem()[1], self.bit)
        self.num_dropped += count
        return count

    def _add(self, name: int, key: int, most: int) -> None:
        known, masks, bit = self.known, self._holders.masks, self.bit
        before = known.get(name)
        if before is not None:
            if before != key:
                raise BadEvents("one block hash for two different blocks")
            return
        if len(known) >= most:
            self.num_dropped += 1
            return
        mask = masks.get(key, 0)
        if not mask:
            masks[key] = bit
        elif not mask & bit:
            self._holders.add(key, bit)
        elif self.expected.pop(key, None) is None:
            return  # the same tokens under a second name: the first one counts
        known[name] = key

    def _adopt(self, name: bytes, most: int) -> None:
        """The orphans below a block that has come."""
        pack = packer(self.block_size)
        names = [name]
        while names:
            name = names.pop()
            parent = self.known.get(name_key(name))
            if parent is None:
                continue
            for block in self._orphans.pop(name):
                self._add(name_key(block.hash), block_key(parent, pack(*block.tokens)), most)
                names.append(block.hash)


class _Orphans:
    """Blocks that wait for their parent."""

    def __init__(self) -> None:
        self._by_parent: dict[bytes, dict[bytes, StoredBlock]] = {}
        self._parent_of: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._parent_of)

    def add(self, block: StoredBlock) -> None:
        if len(self._parent_of) < MOST_ORPHANS and block.hash not in self._parent_of:
            self._by_parent.setdefault(block.parent, {})[block.hash] = block
            self._parent_of[block.hash] = block.parent

    def pop(self, parent: bytes) -> list[StoredBlock]:
        """The children of `parent`, which are no orphans any more."""
        children = list(self._by_parent.pop(parent, {}).values())
        for child in children:
            del self._parent_of[child.hash]
        return children

    def discard(self, name: bytes) -> None:
        parent = self._parent_of.pop(name, None)
        if parent is not None:
            siblings = self._by_parent[parent]
            del siblings[name]
            if not siblings:
                del self._by_parent[parent]


def check_report(frame: Events) -> None:
    """Raises BadEvents when the load or a timing in `frame` is not a possible one."""
    if len(frame.timings) > MOST_TIMINGS:
        raise BadEvents(f"{len(frame.timings)} steps at once")
    load = frame.load
    if load is not None and not (_are_counts(load) and max(load.running, load.waiting, load.leased) <= MOST_REQUESTS):
        raise BadEvents(f"an impossible load: {load}")
    for timing in frame.timings:
        if not (_are_counts(timing) and 0 <= timing.seconds <= LONGEST_STEP_S):
            raise BadEvents(f"an impossible step: {timing}")


def _are_counts(report: Load | StepTiming) -> bool:
    """Whether its integers are numbers of something."""
    values = [getattr(report, name) for name in report.__struct_fields__]
    return all(0 <= value < 2**53 for value in values if isinstance(value, int)) and all(
        math.isfinite(value) for value in values if isinstance(value, float)
    )
