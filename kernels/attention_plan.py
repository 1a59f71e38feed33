"""How one step's attention is cut into calls of torch's CPU flash kernel: index tensors and masks for all its layers.

Rows are padded to a count and keys to a multiple at which the kernel's results agree bitwise (flash.py), so neither the
batch nor chunks nor the block size reach a result. A prompt's first chunk is one causal call: 7.3 ms where masked tiles
take 9.2 ms (2,048 rows of 9 heads of 64, two threads, Intel with AMX, 2026-11-21).
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.kernels.flash import SPLIT, Sizes, additive_mask, pad_keys
from penstock.kernels.rows import split_rows

# Keys that decoding sequences of one call may be padded by in all: about what another call costs (40 us).
_PADDING_PER_CALL = 1024


@dataclass(frozen=True, slots=True)
class Context:
    """The KV of sequences of similar length, as one gather finds it."""

    num_seqs: int
    blocks: Tensor  # int64 [num_seqs * kv_heads * blocks_per_seq]: block * kv_heads + head
    stale: Tensor  # int64: rows of the gathered [num_seqs * kv_heads * slots, dim] past their sequence's length


@dataclass(frozen=True, slots=True)
class Decode:
    """Sequences with one query row each."""

    context: Context
    rows: Tensor  # int64 [num_seqs]
    length: int
    mask: Tensor  # [num_seqs, 1, 1, length], added to the scores


@dataclass(frozen=True, slots=True)
class Tile:
    """Some query rows of one sequence and the keys that the last of them sees, or the first rows and as many keys."""

    start: int
    num_rows: int
    padded_rows: int
    length: int
    mask: Tensor | None  # [1, 1, padded_rows, length], added to the scores; None: causal


@dataclass(frozen=True, slots=True)
class Prefill:
    """One sequence with several query rows."""

    context: Context
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's attention, in calls; the same for all layers."""

    row_sizes: tuple[int, ...]
    decodes: tuple[Decode, ...]
    prefills: tuple[Prefill, ...]


def plan_attention(
    query_starts: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    num_kv_heads: int,
    block_size: int,
    window: int | None,
    dtype: torch.dtype,
    sizes: Sizes,
    copied_rows: Set[int] = frozenset(),
) -> Plan:
    """Group the sequences with one row by length, cut the others into tiles. Shapes as in `AttentionBatch`.

    The sequences of `copied_rows` are left out.
    """
    starts, lengths = query_starts.tolist(), context_lens.tolist()
    decodes, prefills = [], []
    single = [
        seq for seq in range(len(lengths)) if starts[seq + 1] - starts[seq] == 1 and starts[seq] not in copied_rows
    ]
    spans = {seq: _span(lengths[seq] - 1, lengths[seq], window, block_size) for seq in single}
    for seqs in _group(single, {seq: end - start for seq, (start, end) in spans.items()}):
        firsts = torch.tensor([spans[seq][0] for seq in seqs])
        ends = torch.tensor([lengths[seq] for seq in seqs])
        length = pad_keys(max(spans[seq][1] - spans[seq][0] for seq in seqs), sizes.key_multiple)
        context = _context(block_tables[torch.tensor(seqs)], firsts, ends, length, num_kv_heads, block_size)
        rows = torch.tensor([starts[seq] for seq in seqs])
        mask = additive_mask(ends - 1, firsts, length, window, dtype)
        decodes.append(Decode(context, rows, length, mask.view(len(seqs), 1, 1, length)))
    for seq, end in enumerate(lengths):
        num_rows = starts[seq + 1] - starts[seq]
        if num_rows < 2:
            continue
        first, _ = _span(end - num_rows, end, window, block_size)
        firsts, ends = torch.tensor([first]), torch.tensor([end])
        length = pad_keys(end - first, sizes.key_multiple)
        context = _context(block_tables[seq : seq + 1], firsts, ends, length, num_kv_heads, block_size)
        if num_rows == end and window is None and sizes.causal:
            prefills.append(Prefill(context, (Tile(starts[seq], num_rows, length, length, None),)))
            continue
        tiles = []
        row = 0
        for tile_rows, padded_rows in split_rows(num_rows, sizes.rows):
            position = end - num_rows + row
            keys = pad_keys(position + tile_rows - first, sizes.key_multiple)
            positions = (position + torch.arange(padded_rows)).clamp_(max=position + tile_rows - 1)
            mask = additive_mask(positions, firsts, keys, window, dtype).view(1, 1, padded_rows, keys)
            tiles.append(Tile(starts[seq] + row, tile_rows, padded_rows, keys, mask))
            row += tile_rows
        prefills.append(Prefill(context, tuple(tiles)))
    return Plan(sizes.rows, tuple(decodes), tuple(prefills))


def _span(first_position: int, end: int, window: int | None, block_size: int) -> tuple[int, int]:
    """The keys to gather for rows from `first_position` on: whole splits that no window reaches are left out."""
    if window is None or SPLIT % block_size:
        return 0, end
    return max(0, first_position - window + 1) // SPLIT * SPLIT, end


def _group(seqs: list[int], num_keys: dict[int, int]) -> Iterator[list[int]]:
    """Cut sequences into groups of like length, so that a short one is not padded to the longest."""
    group: list[int] = []
    padding = 0
    for seq in sorted(seqs, key=lambda seq: -num_keys[seq]):
        padding += num_keys[group[0]] - num_keys[seq] if group else 0
        if group and padding > _PADDING_PER_CALL:
            yield sorted(group)
            group, padding = [], 0
        group.append(seq)
    if group:
        yield sorted(group)


def _context(tables: Tensor, firsts: Tensor, ends: Tensor, length: int, num_kv_heads: int, block_size: int) -> Context:
    """Where `length` keys from position `firsts[i]` lie, and which of them are past `ends[i]`."""
    num_seqs, max_blocks = tables.shape
    num_blocks = -(-length // block_size)
    columns = firsts[:, None] // block_size + torch.arange(num_blocks)
    # Past the end read the first block again: it is the sequence's own, so we know which of its slots are stale.
    columns = torch.where(columns * block_size < ends[:, None], columns, firsts[:, None] // block_size)
    blocks = tables.gather(1, columns.clamp_(max=max_blocks - 1)).to(torch.int64)
    heads = torch.arange(num_kv_heads)
    positions = columns[:, :, None] * block_size + torch.arange(block_size)
    stale = (positions >= ends[:, None, None]).view(num_seqs, 1, -1).expand(-1, num_kv_heads, -1)
    return Context(
        num_seqs,
        (blocks[:, None, :] * num_kv_heads + heads[:, None]).flatten(),
        stale.flatten().nonzero().squeeze(1),
    )
