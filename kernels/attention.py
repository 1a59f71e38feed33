"""Attention over paged KV: every query row of a mixed prefill and decode batch against its sequence's blocks.

    scores = scale * q @ K[0 .. position]^T        (only the last `window` keys when a window is set)
    output = softmax(scores) @ V

Knows tensors only: a sequence is a row of `block_tables`, a token is a row of `q`. The torch twin here is the CPU path,
planned once per step in attention_plan.py; the Triton kernel is attention_triton.py.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels.attention_plan import Context, Plan, plan_attention
from penstock.kernels.context_copies import CopiedDecodes
from penstock.kernels.flash import flash, measured_sizes

T = TypeVar("T")


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
    copied: tuple[CopiedDecodes, ...] = ()  # on CPU, one-row sequences with copies, which every full layer must update
    _derived: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def derive(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What all layers of this step share: computed by the first that asks for `key`."""
        if key not in self._derived:
            self._derived[key] = compute()
        value: T = self._derived[key]
        return value


def paged_attention(q: Tensor, kv: Tensor, batch: AttentionBatch, *, scale: float, window: int | None = None) -> Tensor:
    """Attend from q `[num_tokens, heads, dim]` to one layer's kv `[num_blocks, kv_heads, 2, block_size, dim]`.

    Query head `h` reads KV head `h // (heads / kv_heads)`. Returns `[num_tokens, heads, dim]` in q's dtype; sums are
    taken in float32. With a `window`, a row sees the keys at positions `position - window + 1 .. position`.
    """
    if q.is_cuda:
        from penstock.kernels.attention_triton import paged_attention_triton

        return paged_attention_triton(q, kv, batch, scale=scale, window=window)
    copied = batch.copied if window is None else ()
    if copied and copied[0].all_rows:
        return copied[0].attend(q, kv, scale)
    num_kv_heads, block_size, dim = kv.shape[1], kv.shape[3], kv.shape[4]
    sizes = measured_sizes(q.dtype, dim, max(num_kv_heads, q.shape[1] // num_kv_heads), torch.get_num_threads())
    plan = batch.derive(
        ("attention", q.dtype, num_kv_heads, block_size, window, sizes),
        lambda: plan_attention(
            batch.query_starts,
            batch.context_lens,
            batch.block_tables,
            num_kv_heads,
            block_size,
            window,
            q.dtype,
            sizes,
            {context.row for decodes in copied for context in decodes.contexts},
        ),
    )
    out = torch.empty(q.shape, dtype=q.dtype)
    for decodes in copied:
        out.index_copy_(0, decodes.rows, decodes.attend(q, kv, scale))
    _attend(q, kv, plan, scale, out)
    return out


def _attend(q: Tensor, kv: Tensor, plan: Plan, scale: float, out: Tensor) -> None:
    _, heads, dim = q.shape
    num_kv_heads = kv.shape[1]
    group = heads // num_kv_heads
    for step in plan.decodes:
        # One row per sequence: the query heads of a KV head are the rows, so that its KV is read once.
        rows = next(size for size in plan.row_sizes if size >= group)
        queries = q.index_select(0, step.rows).view(-1, num_kv_heads, group, dim)
        queries = F.pad(queries, (0, 0, 0, rows - group))
        keys, values = _gather(kv, step.context)
        mask = step.mask.expand(-1, -1, rows, -1)
        found = flash(queries, keys[:, :, : step.length], values[:, :, : step.length], mask, scale)
        out.index_copy_(0, step.rows, found[:, :, :group].reshape(-1, heads, dim))
    for prefill in plan.prefills:
        keys, values = _gather(kv, prefill.context)
        for tile in prefill.tiles:
            # The rows of one sequence: KV heads are the batch, and the query heads of each share its KV (stride 0).
            rows_of_tile = slice(tile.start, tile.start + tile.num_rows)
            queries = q[rows_of_tile]
            if tile.padded_rows > tile.num_rows:
                queries = F.pad(queries, (0, 0, 0, 0, 0, tile.padded_rows - tile.num_rows))
            queries = queries.view(-1, num_kv_heads, group, dim).permute(1, 2, 0, 3)
            shared = (num_kv_heads, group, tile.length, dim)
            tile_keys = keys[0, :, : tile.length].unsqueeze(1).expand(shared)
            tile_values = values[0, :, : tile.length].unsqueeze(1).expand(shared)
            found = flash(queries, tile_keys, tile_values, tile.mask, scale)[:, :, : tile.num_rows]
            out[rows_of_tile].view(-1, num_kv_heads, group, dim).copy_(found.permute(2, 0, 1, 3))


def _gather(kv: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Copy a context's K and V out of their blocks, each `[num_seqs, kv_heads, slots, dim]`; zero its stale slots."""
    num_blocks, num_kv_heads, _, block_size, dim = kv.shape
    gathered = []
    for part in (0, 1):
        blocks = kv[:, :, part].view(num_blocks * num_kv_heads, block_size * dim)
        rows = blocks.index_select(0, context.blocks)
        # A masked NaN in V still poisons the sum (0 * NaN), and one in K its score: neither may get through.
        rows.view(-1, dim).index_fill_(0, context.stale, 0.0)
        gathered.append(rows.view(context.num_seqs, num_kv_heads, -1, dim))
    return gathered[0], gathered[1]
