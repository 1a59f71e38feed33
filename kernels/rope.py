"""Rotary position embedding fused with the write of K and V into the paged cache (Su et al. 2021, section 3.2.2).

Dimension `i` of a head turns with dimension `i + half` (the half-split order of Hugging Face checkpoints):

    out[i]         = x[i] * cos[position, i] - x[i + half] * sin[position, i]
    out[i + half]  = x[i + half] * cos[position, i] + x[i] * sin[position, i]
"""

import torch
from torch import Tensor

from penstock.kernels.attention import AttentionBatch

# Rows at a time: their float32 copies stay in the L2 cache. 2,048 rows at once took 17 ms instead of 3 ms (9 + 3 heads
# of 64, one thread, Intel with AMX, 2026-11-21), most of it page faults of large temporaries.
_ROWS = 128


def rope_and_write(q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, batch: AttentionBatch, kv: Tensor) -> Tensor:
    """Rotate q `[num_tokens, heads, dim]` and k `[num_tokens, kv_heads, dim]`; write k and v at `batch.slots`.

    `cos_sin` is float32 `[max_positions, rotary_dim]`: `rotary_dim / 2` cosines, then as many sines, of each position.
    A `rotary_dim` below `dim` turns only the first `rotary_dim` dimensions. `kv` is one layer's view
    `[num_blocks, kv_heads, 2, block_size, dim]` and is changed in place. Returns the rotated q.
    """
    if q.is_cuda:
        from penstock.kernels.rope_triton import rope_and_write_triton

        return rope_and_write_triton(q, k, v, cos_sin, batch.positions, batch.slots, kv)
    num_tokens, heads, dim = q.shape
    cos, sin = batch.derive(("rope", id(cos_sin)), lambda: _signed(cos_sin.index_select(0, batch.positions)))
    block_size = kv.shape[3]
    places = batch.derive(("places", block_size), lambda: (batch.slots // block_size, batch.slots % block_size))
    turned = torch.empty((num_tokens, heads + k.shape[1], dim), dtype=q.dtype)
    for start in range(0, num_tokens, _ROWS):
        rows = slice(start, start + _ROWS)
        _turn(torch.cat((q[rows], k[rows]), dim=1), cos[rows], sin[rows], turned[rows])
    kv.permute(0, 3, 1, 2, 4)[places] = torch.stack((turned[:, heads:], v), dim=2).to(kv.dtype)
    return turned[:, :heads]


def _signed(cos_sin: Tensor) -> tuple[Tensor, Tensor]:
    """`[n, rotary_dim]` to cosines `c | c` and sines `-s | s`, each `[n, 1, rotary_dim]`."""
    cos, sin = cos_sin.unsqueeze(1).chunk(2, dim=-1)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Turn x `[n, heads, dim]` in float32. Multiply and add apart: a fused step may round body and tail unlike."""
    rotary_dim = cos.shape[-1]
    half = rotary_dim // 2
    if rotary_dim < x.shape[-1]:
        out[..., rotary_dim:] = x[..., rotary_dim:]
    wide = x[..., :rotary_dim].float()  # first of all: products of unlike dtypes take a slow path
    swapped = torch.cat((wide[..., half:], wide[..., :half]), dim=-1)
    out[..., :rotary_dim] = (wide * cos).add_(swapped.mul_(sin))
