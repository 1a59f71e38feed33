"""Rotary position embedding fused with the write of K and V into the paged cache (Su et al. 2021, section 3.2.2).

Dimension `i` of a head turns with dimension `i + dim/2` (the half-split order of Hugging Face checkpoints):

    out[i]         = x[i] * cos[position, i] - x[i + half] * sin[position, i]
    out[i + half]  = x[i + half] * cos[position, i] + x[i] * sin[position, i]
"""

import torch
from torch import Tensor

from penstock.kernels.attention import AttentionBatch


def rope_and_write(q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, batch: AttentionBatch, kv: Tensor) -> Tensor:
    """Rotate q `[num_tokens, heads, dim]` and k `[num_tokens, kv_heads, dim]`; write k and v at `batch.slots`.

    `cos_sin` is float32 `[max_positions, rotary_dim]`: `rotary_dim / 2` cosines, then as many sines, of each position.
    A `rotary_dim` below `dim` turns only the first `rotary_dim` dimensions. `kv` is one layer's view
    `[num_blocks, kv_heads, 2, block_size, dim]` and is changed in place. Returns the rotated q.
    """
    cos, sin = cos_sin[batch.positions].unsqueeze(1).chunk(2, dim=-1)
    block_size = kv.shape[3]
    blocks, offsets = batch.slots // block_size, batch.slots % block_size
    kv[blocks, :, 0, offsets] = rotate(k, cos, sin).to(kv.dtype)
    kv[blocks, :, 1, offsets] = v.to(kv.dtype)
    return rotate(q, cos, sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x `[num_tokens, heads, dim]` by cos and sin `[num_tokens, 1, rotary_dim / 2]`, in float32."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
