"""The router's own names of KV blocks: chained keys of 60 bits, made of nothing but salt and tokens.

A key is SipHash-1-3 under this process's random secret, which is what `hash()` of bytes is in CPython (PEP 456), of the
block's tokens, mixed with its parent's key. Keyed, because with a public hash a tenant could craft prompts that collide
with another's; Python's own, because a prompt of 100,000 tokens is hashed in 1.5 ms, against 4.5 ms with blake2b; 60
bits, because such an int takes 32 bytes. Two of five million blocks collide once in 10^5 routers, and then a placement
is a little worse: workers compare 128 bits of their own before they share a block.
"""

import secrets
import struct
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b

import msgspec

MASK = (1 << 60) - 1
_ROOT = secrets.token_bytes(16)
"""Keys stay unguessable where PYTHONHASHSEED fixes the other secret."""
_TOKEN_BYTES = 4


def opaque_salt(secret: str, salt: str, adapter: str = "") -> str:
    """What a worker is told instead of a tenant's salt and the adapter; "" for neither.

    The worker mixes it into its hashes and shows it to all who follow its events, to whom it names no tenant.
    `secret` is the deployment's, so that all its routers tell the same.
    """
    if not salt and not adapter:
        return ""
    key = blake2b(secret.encode()).digest()
    return blake2b(msgspec.json.encode([adapter, salt]), digest_size=16, key=key).hexdigest()


def root_key(salt: str) -> int:
    """The parent of first blocks; `salt` is what the worker was told."""
    return hash((_ROOT, salt)) & MASK


def name_key(name: bytes) -> int:
    """Stands for a worker's own hash of a block, whatever that is."""
    return hash(name) & MASK


def block_key(parent: int, packed: bytes) -> int:
    """The key of a block; `packed` are its tokens as by `packer`."""
    return hash((parent, packed)) & MASK


@lru_cache(64)
def packer(block_size: int) -> Callable[..., bytes]:
    """A function from `block_size` tokens to bytes. It raises struct.error for what are not that many token ids."""
    return struct.Struct(f"={block_size}I").pack


class PromptKeys:
    """The keys of a prompt's full blocks, made when first asked for: workers differ in block size."""

    def __init__(self, salt: str, tokens: Sequence[int]) -> None:
        self._root = root_key(salt)
        self._packed = array("I", tokens).tobytes()
        self._keys: dict[int, list[int]] = {}

    @property
    def num_tokens(self) -> int:
        return len(self._packed) // _TOKEN_BYTES

    def of(self, block_size: int) -> list[int]:
        """One key for each full block of `block_size` tokens. Not to be changed."""
        keys = self._keys.setdefault(block_size, [])
        packed, step = self._packed, block_size * _TOKEN_BYTES
        if (len(keys) + 1) * step <= len(packed):
            parent = keys[-1] if keys else self._root
            for at in range(len(keys) * step, len(packed) - step + 1, step):
                parent = hash((parent, packed[at : at + step])) & MASK
                keys.append(parent)
        return keys

    def followed_by(self, tokens: Sequence[int]) -> "PromptKeys":
        """The keys of this prompt and `tokens` after it; only what is new is hashed."""
        longer = PromptKeys.__new__(PromptKeys)
        longer._root = self._root
        longer._packed = self._packed + array("I", tokens).tobytes()
        longer._keys = {size: list(keys) for size, keys in self._keys.items()}
        return longer
