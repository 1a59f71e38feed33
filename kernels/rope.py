"""Rotary position embedding fused with the write of K and V into the paged cache (Su et al. 2021, section 3.2.2).

Dimension `i` of a head turns with dimension `i + half` (the half-split order of Hugging Face checkpoints):

    out[i]         = x[i] * cos[position, i] - x[i + half] * sin[position, i]
    out[i + half]  = x[i + half] * cos[position, i] + x[i] * sin[position, i]
"""

import torch
from torch import Tensor

from penstock.kernels.attention import AttentionBatch
from penstock.kernels.paged import head_row_numbers, head_rows

# Rows at a time for each thread: their float32 copies stay in its L2 cache. 2,048 rows at once took 4.7 ms instead of
# 0.8 ms (9 + 3 heads of 64, two threads, Intel with AMX, 2026-11-21).
_ROWS_PER_THREAD = 64


def rope_and_write(qkv: Tensor, cos_sin: Tensor, batch: AttentionBatch, kv: Tensor) -> Tensor:
    """Rotate the q and k of qkv `[num_tokens, heads + 2 * kv_heads, dim]`; write k and v at `batch.slots`.

    `cos_sin` is float32 `[max_positions, rotary_dim]`: `rotary_dim / 2` cosines, then as many sines, of each position.
    A `rotary_dim` below `dim` turns only the first `rotary_dim` dimensions. `kv` is one layer's view
    `[num_blocks, kv_heads, 2, block_size, dim]` and is changed in place. Returns the rotated q
    `[num_tokens, heads, dim]`; qkv is used up (on CPU, q and k turn in place).
    """
    kv_heads = kv.shape[1]
    heads = qkv.shape[1] - 2 * kv_heads
    if qkv.is_cuda:
        from penstock.kernels.rope_triton import rope_and_write_triton

        q, k, v = qkv.split_with_sizes((heads, kv_heads, kv_heads), dim=1)
        return rope_and_write_triton(q, k, v, cos_sin, batch.positions, batch.slots, kv)
    cos, sin = batch.derive(("rope", id(cos_sin)), lambda: _signed(cos_sin.index_select(0, batch.positions)))
    rotating = qkv[:, : heads + kv_heads, : cos.shape[-1]]
    step = _ROWS_PER_THREAD * torch.get_num_threads()
    for start in range(0, len(qkv), step):
        rows = slice(start, start + step)
        _turn(rotating[rows], cos[rows], sin[rows])
    places = batch.derive("places", lambda: head_row_numbers(batch.slots, kv).flatten())
    head_rows(kv).index_copy_(0, places, qkv[:, heads:].reshape(-1, qkv.shape[2]))
    return qkv[:, :heads]


def _signed(cos_sin: Tensor) -> tuple[Tensor, Tensor]:
    """`[n, rotary_dim]` to cosines `c | c` and sines `-s | s`, each `[n, 1, rotary_dim]`."""
    cos, sin = cos_sin.unsqueeze(1).chunk(2, dim=-1)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn x `[n, heads, rotary_dim]` in float32. Multiply, then add: a fused step may round body and tail unlike."""
    wide = x.to(torch.float32, copy=True)  # first of all: products of unlike dtypes take a slow path
    first, second = wide.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    x.copy_(wide.mul_(cos).add_(swapped.mul_(sin)))
