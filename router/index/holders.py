"""From a block's key to the set of those who hold it: one dict, built for millions of blocks.

A set is a bit mask, and equal masks are one object, so a block costs its key (32 bytes) and an entry of the dict
(34 to 67 bytes, by how full that is). A holder that is forgotten is left out of every answer at once, by its bit;
its entries go later, in slices, and only then is the bit given to another.
"""

from collections import deque
from collections.abc import Iterable, Iterator

_MOST_INTERNED = 65_536


class Holders:
    """Sets of bits by key."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        """Key -> mask of holders, those included that were forgotten and not yet swept."""
        self._interned: dict[int, int] = {}
        self._free_bits: list[int] = []
        self._num_bits = 0
        self._garbage: deque[tuple[int, Iterator[int]]] = deque()

    def take_bit(self) -> int:
        """A bit that is in no mask."""
        if self._free_bits:
            return self._free_bits.pop()
        self._num_bits += 1
        return 1 << (self._num_bits - 1)

    def add(self, key: int, bit: int) -> None:
        mask = self.masks.get(key, 0) | bit
        self.masks[key] = self._one_object(mask)

    def discard(self, key: int, bit: int) -> None:
        mask = self.masks.get(key, 0)
        if not mask & bit:
            return
        if mask == bit:
            del self.masks[key]
        else:
            self.masks[key] = self._one_object(mask & ~bit)

    def forget(self, bit: int, keys: Iterable[int]) -> None:
        """`bit` is to leave the masks of `keys`, which are all that have it; `sweep` does it."""
        self._garbage.append((bit, iter(keys)))

    def sweep(self, at_most: int) -> bool:
        """Clears up to so many forgotten entries. False when nothing is left to do."""
        while self._garbage and at_most > 0:
            bit, keys = self._garbage[0]
            for key in keys:
                self.discard(key, bit)
                at_most -= 1
                if at_most == 0:
                    break
            else:
                self._garbage.popleft()
                self._free_bits.append(bit)
        return bool(self._garbage)

    def _one_object(self, mask: int) -> int:
        if len(self._interned) > _MOST_INTERNED:
            self._interned.clear()
        return self._interned.setdefault(mask, mask)
