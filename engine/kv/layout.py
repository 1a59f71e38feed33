"""Where a token's K and V lie: the one place that knows the strides of the paged KV cache.

`[block, kv_head, layer, K|V, token, dim]`: a block is one contiguous range (one transfer descriptor), and so is a
tensor-parallel slice of its heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.errors import MemoryPlanError

COPIED_SHARE = 0.5
"""On CPU, contiguous copies of running sequences take up to this share of the blocks' memory again.

(Not in a model whose layers all have a window: those read few blocks.)
"""


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


def plan_blocks(
    layout: KVLayout, *, kv_bytes: int, num_blocks: int, weight_bytes: int, free_bytes: int, copies: bool
) -> int:
    """How many blocks to allocate: `num_blocks` when set, else what fits into `kv_bytes`, with their copies if any.

    Raises MemoryPlanError with the arithmetic when weights and cache do not fit into `free_bytes`.
    """
    block_bytes = int(layout.block_bytes * (1 + COPIED_SHARE)) if copies else layout.block_bytes
    blocks = num_blocks or kv_bytes // block_bytes
    size = f"{layout.block_size} tokens x {layout.token_bytes} bytes"
    if copies:
        size += f", and {COPIED_SHARE:.0%} for copies"
    if blocks < 2:
        raise MemoryPlanError(
            f"--kv-bytes {kv_bytes} holds {blocks} blocks of {block_bytes} bytes ({size}); at least 2 are needed"
        )
    needed = weight_bytes + blocks * block_bytes
    if needed > free_bytes:
        raise MemoryPlanError(
            f"weights {_mib(weight_bytes)} + KV cache {_mib(blocks * block_bytes)} ({blocks} blocks x {block_bytes} "
            f"bytes: {size}) = {_mib(needed)}, but only {_mib(free_bytes)} are free; lower --kv-bytes"
        )
    return blocks


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
