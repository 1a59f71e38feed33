"""Which worker has which blocks, as far as one router knows: what workers said, and what its own placements will do.

One bit per worker and block: a prompt is matched against all workers in one walk over its blocks.
"""

from collections.abc import Iterable, Sequence

from penstock.simulator.trace import BLOCK_TOKENS


class CacheView:
    """Blocks by hash, each with the set of its holders."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = tuple(urls)
        self._bit = {url: 1 << number for number, url in enumerate(urls)}
        self._holders: dict[bytes, int] = {}

    def stored(self, url: str, hashes: Iterable[bytes]) -> None:
        """`url` has these blocks, or will have them once it has computed what was just placed there."""
        bit, holders = self._bit[url], self._holders
        for block in hashes:
            holders[block] = holders.get(block, 0) | bit

    def removed(self, url: str, hashes: Iterable[bytes]) -> None:
        bit, holders = self._bit[url], self._holders
        for block in hashes:
            left = holders.get(block, 0) & ~bit
            if left:
                holders[block] = left
            else:
                holders.pop(block, None)

    def forget(self, url: str) -> None:
        """A worker's cache is gone."""
        self.removed(url, [block for block, holders in self._holders.items() if holders & self._bit[url]])

    def match(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """Per worker that has any, how many tokens of the prompt's beginning it has."""
        matched: dict[str, int] = {}
        alive = (1 << len(self._urls)) - 1
        for number, block in enumerate(hashes):
            still = alive & self._holders.get(block, 0)
            if still != alive:
                self._note(alive & ~still, number, matched)
                alive = still
                if not alive:
                    return matched
        self._note(alive, len(hashes), matched)
        return matched

    def _note(self, workers: int, blocks: int, matched: dict[str, int]) -> None:
        while blocks and workers:
            lowest = workers & -workers
            matched[self._urls[lowest.bit_length() - 1]] = blocks * BLOCK_TOKENS
            workers ^= lowest
