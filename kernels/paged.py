"""The paged cache as a table of rows, one head of one token each: how CPU code gathers and scatters without a loop.

`kv` is one layer's view `[num_blocks, kv_heads, 2, block_size, dim]` of a pool whose strides are multiples of `dim`.
Row numbers count from the layer's first element, so they are the same for all layers of a pool.
"""

import torch
from torch import Tensor


def head_rows(kv: Tensor) -> Tensor:
    """The pool from the layer's first element on, `[rows, dim]`, without a copy."""
    dim = kv.shape[-1]
    num_rows = (kv.untyped_storage().nbytes() // kv.element_size() - kv.storage_offset()) // dim
    return kv.as_strided((num_rows, dim), (dim, 1))


def head_row_numbers(slots: Tensor, kv: Tensor) -> Tensor:
    """int64 `[num_slots, 2, kv_heads]`: the rows that hold K, then V, of each slot (block * block_size + offset)."""
    _, kv_heads, _, block_size, dim = kv.shape
    block, head, part, token = (stride // dim for stride in kv.stride()[:4])
    first = slots // block_size * block + slots % block_size * token
    return first[:, None, None] + torch.arange(2)[:, None] * part + torch.arange(kv_heads) * head
