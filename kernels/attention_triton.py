"""Triton kernel of attention.py: prefill and decode rows alike, in tiles of query rows, with an online softmax.

Online softmax: Milakov & Gimelshein 2018, algorithm 3; tiling: Dao et al. 2022 (FlashAttention), algorithm 1; the rows
of a tile are all query heads of one KV head for some tokens of one sequence, so that its KV is read once per group.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.attention import AttentionBatch

_LOG2_E = 1.4426950408889634


def paged_attention_triton(
    q: Tensor, kv: Tensor, batch: AttentionBatch, *, scale: float, window: int | None = None
) -> Tensor:
    """As `paged_attention`."""
    num_tokens, heads, dim = q.shape
    kv_heads = kv.shape[1]
    group = heads // kv_heads
    assert q.stride(2) == kv.stride(4) == 1
    out = torch.empty((num_tokens, heads, dim), dtype=q.dtype, device=q.device)
    if not num_tokens:
        return out
    # 16 rows fill the smallest matrix instruction; prompts amortise their keys over more. Not tuned on a GPU yet.
    tile_rows = max(16 if batch.max_query_len == 1 else 64, triton.next_power_of_2(group))
    tile_tokens = tile_rows // group
    num_seqs = len(batch.context_lens)
    # Sequence i owns the tiles from starts[i] // tile_tokens + i on: an upper bound that needs no copy to the host.
    grid = (num_tokens // tile_tokens + num_seqs, kv_heads)
    _attention_kernel[grid](
        q,
        kv,
        out,
        batch.query_starts,
        batch.context_lens,
        batch.block_tables,
        num_seqs,
        scale * _LOG2_E,
        *q.stride()[:2],
        *kv.stride()[:4],
        batch.block_tables.stride(0),
        HEADS=heads,
        GROUP=group,
        DIM=dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(dim)),
        BLOCK_SIZE=kv.shape[3],
        TILE_ROWS=tile_rows,
        TILE_TOKENS=tile_tokens,
        TILE_KEYS=64 if q.dtype.itemsize == 2 else 32,
        WINDOW=window or 0,
    )
    return out


@triton.jit
def _attention_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    query_starts_ptr,
    context_lens_ptr,
    block_tables_ptr,
    num_seqs,
    scale_log2,
    q_stride,
    q_head_stride,
    block_stride,
    kv_head_stride,
    part_stride,
    slot_stride,
    table_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)

    # The last sequence whose first tile is not after this one.
    low = 0
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(query_starts_ptr + middle) // TILE_TOKENS + middle <= tile:
            low = middle
        else:
            high = middle
    seq = low
    first_row = tl.load(query_starts_ptr + seq)
    num_rows = tl.load(query_starts_ptr + seq + 1) - first_row
    first_token = (tile - first_row // TILE_TOKENS - seq) * TILE_TOKENS
    if first_token < num_rows:
        context_len = tl.load(context_lens_ptr + seq)
        row = tl.arange(0, TILE_ROWS)
        token = first_token + row // GROUP
        real = (row // GROUP < TILE_TOKENS) & (token < num_rows)
        position = context_len - num_rows + token
        dim = tl.arange(0, BLOCK_DIM)
        in_dim = dim < DIM
        head = kv_head * GROUP + row % GROUP
        query_row = (first_row + token).to(tl.int64)
        q_place = query_row[:, None] * q_stride + head[:, None] * q_head_stride + dim[None, :]
        q = tl.load(q_ptr + q_place, mask=real[:, None] & in_dim[None, :], other=0.0)

        biggest = tl.full([TILE_ROWS], float("-inf"), tl.float32)
        weight_sum = tl.zeros([TILE_ROWS], tl.float32)
        total = tl.zeros([TILE_ROWS, BLOCK_DIM], tl.float32)
        first_position = context_len - num_rows + first_token
        end = tl.minimum(first_position + TILE_TOKENS, context_len)
        start = 0
        if WINDOW > 0:
            start = tl.maximum(first_position - WINDOW + 1, 0) // TILE_KEYS * TILE_KEYS
        for first_key in range(start, end, TILE_KEYS):
            key = first_key + tl.arange(0, TILE_KEYS)
            written = key < end
            block = tl.load(block_tables_ptr + seq * table_stride + key // BLOCK_SIZE, mask=written, other=0)
            place = block.to(tl.int64) * block_stride + kv_head * kv_head_stride + key % BLOCK_SIZE * slot_stride
            # Slots past the end may hold NaN, and 0 * NaN is NaN: they are loaded as zeros.
            kv_mask = written[:, None] & in_dim[None, :]
            k = tl.load(kv_ptr + place[:, None] + dim[None, :], mask=kv_mask, other=0.0)
            v = tl.load(kv_ptr + part_stride + place[:, None] + dim[None, :], mask=kv_mask, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
            seen = key[None, :] <= position[:, None]
            if WINDOW > 0:
                seen = seen & (key[None, :] > position[:, None] - WINDOW)
            scores = tl.where(seen & written[None, :], scores, float("-inf"))
            bigger = tl.maximum(biggest, tl.max(scores, axis=1))
            # A row that has seen no key yet has the maximum -inf, and -inf - -inf is NaN.
            reference = tl.where(bigger == float("-inf"), 0.0, bigger)
            weights = tl.exp2(scores - reference[:, None])
            decay = tl.exp2(biggest - reference)
            weight_sum = weight_sum * decay + tl.sum(weights, axis=1)
            total = total * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            biggest = bigger
        out = total / tl.where(weight_sum == 0.0, 1.0, weight_sum)[:, None]  # rows of padding see no key
        out_place = (query_row[:, None] * HEADS + head[:, None]) * DIM + dim[None, :]
        tl.store(out_ptr + out_place, out.to(out_ptr.dtype.element_ty), mask=real[:, None] & in_dim[None, :])
