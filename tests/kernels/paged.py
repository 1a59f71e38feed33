"""Random paged batches whose unused slots are NaN, and attention over them by the formula, one row at a time."""

import torch
from torch import Tensor

from penstock.kernels.attention import AttentionBatch


def make_batch(lengths: list[int], num_rows: list[int], block_size: int, spare_blocks: int = 3) -> AttentionBatch:
    """A step over sequences of `lengths`, of which the last `num_rows` are this step's rows, in shuffled blocks."""
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts) + spare_blocks)
    tables = torch.full((len(lengths), max(counts) + 1), int(order[-1]), dtype=torch.int32)
    slots, positions = [], []
    start = 0
    for seq, (length, rows, count) in enumerate(zip(lengths, num_rows, counts, strict=True)):
        tables[seq, :count] = order[start : start + count]
        start += count
        position = torch.arange(length - rows, length)
        positions.append(position)
        slots.append(tables[seq, position // block_size].long() * block_size + position % block_size)
    return AttentionBatch(
        query_starts=torch.tensor([0, *num_rows], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        block_tables=tables,
        slots=torch.cat(slots),
        positions=torch.cat(positions),
        max_query_len=max(num_rows),
        max_context_len=max(lengths),
    )


def write_contexts(batch: AttentionBatch, keys: list[Tensor], values: list[Tensor], block_size: int) -> Tensor:
    """A pool of two layers, NaN but for layer 1 of the sequences' slots: keys and values `[length, kv_heads, dim]`."""
    num_blocks = int(batch.block_tables.max()) + 1
    _, kv_heads, dim = keys[0].shape
    pool = torch.full((num_blocks, kv_heads, 2, 2, block_size, dim), torch.nan, dtype=keys[0].dtype)
    for seq, (k, v) in enumerate(zip(keys, values, strict=True)):
        for position in range(len(k)):
            block = int(batch.block_tables[seq, position // block_size])
            pool[block, :, 1, 0, position % block_size] = k[position]
            pool[block, :, 1, 1, position % block_size] = v[position]
    return pool


def attend_by_formula(
    q: Tensor, keys: list[Tensor], values: list[Tensor], batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """The definition of attention, in float64, one row and one head at a time."""
    out = torch.empty(q.shape, dtype=torch.float64)
    starts = batch.query_starts.tolist()
    for seq, (k, v) in enumerate(zip(keys, values, strict=True)):
        group = q.shape[1] // k.shape[1]
        for row in range(starts[seq], starts[seq + 1]):
            last = int(batch.positions[row])
            first = 0 if window is None else max(0, last - window + 1)
            for head in range(q.shape[1]):
                seen = slice(first, last + 1)
                scores = k[seen, head // group].double() @ q[row, head].double() * scale
                out[row, head] = scores.softmax(0) @ v[seen, head // group].double()
    return out
