"""Where a token's K and V lie: the one place that knows the strides of the paged KV cache.

`[block, kv_head, layer, K|V, token, dim]`: a block is one contiguous range (one transfer descriptor), and so is a
tensor-parallel slice of its heads.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.errors import MemoryPlanError


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape of one layer group's cache, without the number of blocks."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """KV bytes of one token."""
        return self.num_layers * self.num_kv_heads * self.head_dim * 2 * self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """KV bytes of one block."""
        return self.token_bytes * self.block_size

    def allocate(self, num_blocks: int, device: torch.device) -> Tensor:
        """The cache tensor, zeroed."""
        shape = (num_blocks, self.num_kv_heads, self.num_layers, 2, self.block_size, self.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=device)


def plan_blocks(layout: KVLayout, *, kv_bytes: int, num_blocks: int, weight_bytes: int, free_bytes: int) -> int:
    """How many blocks to allocate: `num_blocks` when set, else what fits into `kv_bytes`.

    Raises MemoryPlanError with the arithmetic when weights and cache do not fit into `free_bytes`.
    """
    blocks = num_blocks or kv_bytes // layout.block_bytes
    if blocks < 2:
        raise MemoryPlanError(
            f"--kv-bytes {kv_bytes} holds {blocks} blocks of {layout.block_bytes} bytes "
            f"({layout.block_size} tokens x {layout.token_bytes} bytes); at least 2 are needed"
        )
    needed = weight_bytes + blocks * layout.block_bytes
    if needed > free_bytes:
        raise MemoryPlanError(
            f"weights {_mib(weight_bytes)} + KV cache {_mib(blocks * layout.block_bytes)} ({blocks} blocks x "
            f"{layout.block_bytes} bytes) = {_mib(needed)}, but only {_mib(free_bytes)} are free; lower --kv-bytes"
        )
    return blocks


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens`."""
    return math.ceil(num_tokens / block_size)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
