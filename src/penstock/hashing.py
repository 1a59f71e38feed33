"""Chained block hashes: the names under which router and workers know a prefix.

H(parent, tokens) is 128 bits of blake2b keyed with a secret of the deployment. A keyed cryptographic hash rather than
xxhash: with a fast public hash a tenant could craft prompts that collide with another tenant's blocks.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

HASH_BYTES = 16


class BlockHasher:
    """Hashes token blocks under one root; sequences with different roots never share a block."""

    def __init__(self, secret: bytes, *root: str) -> None:
        """`root` names what makes KV bytes differ: model, weights version, KV dtype, adapter, tenant salt."""
        self._secret = blake2b(secret).digest()  # a key of any length
        self.root = blake2b(msgspec.json.encode(root), digest_size=HASH_BYTES, key=self._secret).digest()

    def hash_block(self, parent: bytes, tokens: Sequence[int]) -> bytes:
        """The hash of `tokens` that follow `parent`. A partial block hashes like any other."""
        return blake2b(parent + array("I", tokens).tobytes(), digest_size=HASH_BYTES, key=self._secret).digest()

    def extend(self, hashes: list[bytes], tokens: Sequence[int], block_size: int) -> None:
        """Appends to `hashes` the hash of every full block of `tokens` that it lacks."""
        for start in range(len(hashes) * block_size, len(tokens) - block_size + 1, block_size):
            parent = hashes[-1] if hashes else self.root
            hashes.append(self.hash_block(parent, tokens[start : start + block_size]))
