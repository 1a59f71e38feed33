"""Attention over paged KV: every query row of a mixed prefill and decode batch against its sequence's blocks.

    scores = scale * q @ K[0 .. position]^T        (only the last `window` keys when a window is set)
    output = softmax(scores) @ V

Knows tensors only: a sequence is a row of `block_tables`, a token is a row of `q`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Where the rows of one step live: built once per step, shared by all layers.

    The rows of sequence `i` are `query_starts[i]:query_starts[i + 1]`, its newest positions; they attend to KV
    positions `0..positions[row]`, found through `block_tables[i]`. Table entries past a sequence's last block may hold
    anything that is a valid block id; slots past its length may hold anything, NaN included.
    """

    query_starts: Tensor  # int32 [num_seqs + 1]
    context_lens: Tensor  # int32 [num_seqs]: KV length including this step's rows
    block_tables: Tensor  # int32 [num_seqs, max_blocks]
    slots: Tensor  # int64 [num_tokens]: block * block_size + offset of each row's own KV
    positions: Tensor  # int64 [num_tokens]
    max_query_len: int
    max_context_len: int
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)


def paged_attention(q: Tensor, kv: Tensor, batch: AttentionBatch, *, scale: float, window: int | None = None) -> Tensor:
    """Attend from q `[num_tokens, heads, dim]` to one layer's kv `[num_blocks, kv_heads, 2, block_size, dim]`.

    Query head `h` reads KV head `h // (heads / kv_heads)`. Returns `[num_tokens, heads, dim]` in q's dtype; sums are
    taken in float32. With a `window`, a row sees the keys at positions `position - window + 1 .. position`.
    """
    num_kv_heads, block_size, dim = kv.shape[1], kv.shape[3], kv.shape[4]
    group = q.shape[1] // num_kv_heads
    out = torch.empty_like(q)
    starts = batch.query_starts.tolist()
    for seq, length in enumerate(batch.context_lens.tolist()):
        rows = slice(starts[seq], starts[seq + 1])
        blocks = batch.block_tables[seq, : -(-length // block_size)]
        keys, values = kv[blocks].permute(2, 1, 0, 3, 4).reshape(2, num_kv_heads, -1, dim)[:, :, :length].float()
        queries = q[rows].float().view(-1, num_kv_heads, group, dim).permute(1, 2, 0, 3)
        scores = queries @ keys.unsqueeze(1).transpose(-1, -2) * scale
        age = batch.positions[rows, None] - torch.arange(length, device=q.device)
        hidden = age < 0 if window is None else (age < 0) | (age >= window)
        probs = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[rows] = (probs @ values.unsqueeze(1)).permute(2, 0, 1, 3).flatten(1, 2).to(q.dtype)
    return out
