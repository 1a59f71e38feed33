"""Which workers probably hold which prompt prefix: the router's own memory of where it placed what.

Keyed by the router's own chained hashes of 16 tokens; it knows nothing of the workers' blocks or evictions, so it is a
hint for placement and never a promise.
"""

import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from penstock.hashing import BlockHasher


class PrefixIndex:
    """At most `max_blocks` hashes, the least recently placed forgotten first."""

    block_tokens = 16

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._secret = secrets.token_bytes(32)
        self._holders: OrderedDict[bytes, set[str]] = OrderedDict()

    def hash(self, tokens: Sequence[int], salt: str, known: Iterable[bytes] = ()) -> list[bytes]:
        """Chained hashes of the full blocks of `tokens`; `known` are those of its first blocks."""
        hashes = list(known)
        BlockHasher(self._secret, salt).extend(hashes, tokens, self.block_tokens)
        return hashes

    def match(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """Per worker URL, how many tokens of the prefix it probably holds."""
        matched: dict[str, int] = {}
        holders: set[str] | None = None
        for index, hash_ in enumerate(hashes):
            found = self._holders.get(hash_, set())
            holders = set(found) if holders is None else holders & found
            if not holders:
                break
            for url in holders:
                matched[url] = (index + 1) * self.block_tokens
        return matched

    def record(self, url: str, hashes: Sequence[bytes]) -> None:
        """`url` holds, or is about to hold, these blocks."""
        for hash_ in reversed(hashes):  # so that the end of a prefix is forgotten before its beginning
            self._holders.setdefault(hash_, set()).add(url)
            self._holders.move_to_end(hash_)
        while len(self._holders) > self._max_blocks:
            self._holders.popitem(last=False)

    def retract(self, url: str, hashes: Sequence[bytes]) -> None:
        """`url` does not hold these blocks after all."""
        for hash_ in hashes:
            if hash_ in self._holders:
                self._discard(hash_, url)

    def forget(self, url: str) -> None:
        """`url` lost its cache: it died, or is another process now."""
        for hash_ in [hash_ for hash_, holders in self._holders.items() if url in holders]:
            self._discard(hash_, url)

    def __len__(self) -> int:
        return len(self._holders)

    def _discard(self, hash_: bytes, url: str) -> None:
        self._holders[hash_].discard(url)
        if not self._holders[hash_]:
            del self._holders[hash_]
