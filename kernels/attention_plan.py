"""How one step's attention is cut into calls of torch's CPU flash kernel: index tensors and masks for all its layers.

Exact mode rests on two measured facts about that kernel (torch 2.13, `_scaled_dot_product_flash_attention_for_cpu`; the
online softmax of Milakov & Gimelshein 2018 over splits of 512 keys counted from the first):

- A query row's result does not depend on the number of rows, heads, sequences or threads, if the number of rows is
  one of a few (measured here at start; 1, 2 and 33 rows differ, for example).
- Keys after the last visible one change nothing, bit for bit, nor do whole splits before the first one, if the number
  of keys is padded to a measured multiple within its last split (64 keys in bf16; 256 in fp32, where MKL blocks sums).
- The kernel's own causal path, which skips what no row sees, gives the same bits where rows and keys start together.

So rows are padded to a measured count and keys to a measured multiple, and neither the batch nor chunks nor the block
size reach a result. A prompt's first chunk is one causal call: 7.3 ms where masked tiles take 9.2 ms (2,048 rows of 9
heads of 64, two threads, Intel with AMX, 2026-11-21).
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels.rows import agreeing_sizes, split_rows

# The kernel's own split of the keys: contexts start at multiples of it.
SPLIT = 512
# The query rows of one call. Up to 256: more would leave more of the square above the diagonal to be computed in vain.
_ROW_SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# The widest head that several KV heads are folded to.
_MAX_FOLDED_DIM = 256
# Row counts at which the causal path is compared: below and above those at which the kernel cuts rows otherwise.
_CAUSAL_ROWS = (64, 128, 256, 448, 512, 704, 768, 1024)
# Keys that decoding sequences of one call may be padded by in all: about what another call costs (40 us).
_PADDING_PER_CALL = 1024


@dataclass(frozen=True, slots=True)
class Sizes:
    """What agrees bitwise on this CPU."""

    rows: tuple[int, ...]
    key_multiple: int
    causal: bool
    """Whether the causal path agrees with masks."""


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


def flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax attention of q `[batch, heads, rows, dim]` over k and v `[batch, heads, keys, dim]`.

    The mask is added to the scores; without one, row `i` sees keys `0..i`.
    """
    causal = mask is None
    if mask is not None:
        mask = mask.expand(q.shape[0], -1, -1, -1)
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scale
    )[0]
    return out


@lru_cache
def measured_sizes(dtype: torch.dtype, dim: int, threads: int) -> Sizes:
    """Runs the kernel on fixed operands and compares; `threads` tells results apart."""
    del threads
    generator = torch.Generator().manual_seed(0)
    most = _ROW_SIZES[-1]
    q = (3 * torch.randn(2, 3, most, dim, generator=generator)).to(dtype)
    k = torch.randn(2, 3, 2 * SPLIT, dim, generator=generator).to(dtype)
    v = 256 * torch.randn(2, 3, 2 * SPLIT, dim, generator=generator)
    v = (v - v.roll(1, dims=2)).to(dtype)

    def attend(batch: int, rows: int, keys: int, positions: Tensor) -> Tensor:
        mask = additive_mask(positions.expand(rows), torch.tensor([0]), keys, None, dtype).view(1, 1, rows, keys)
        return flash(q[:batch, :, -rows:], k[:batch, :, :keys], v[:batch, :, :keys], mask, dim**-0.5)

    def last_rows(rows: int) -> Tensor:
        before_last = torch.tensor([2 * SPLIT - 2])
        found, alone = (attend(batch, rows, 2 * SPLIT, before_last) for batch in (2, 1))
        return (found if torch.equal(found[:1], alone) else found * torch.nan).permute(2, 0, 1, 3)

    row_sizes = agreeing_sizes(last_rows, _ROW_SIZES)
    some_rows = (row_sizes[0], row_sizes[-1])

    def ignores_keys_past_the_last(multiple: int) -> bool:
        calls = [(rows, keys) for rows in some_rows for keys in range(multiple, SPLIT, multiple)]
        last = {keys: torch.tensor([keys - 1]) for _, keys in calls}
        return all(
            torch.equal(attend(2, rows, keys, last[keys]), attend(2, rows, SPLIT, last[keys])) for rows, keys in calls
        )

    def causal_agrees(rows: int) -> bool:
        queries = q.repeat(1, 1, -(-rows // most), 1)[:, :, -rows:]
        found = flash(queries, k[:, :, :rows], v[:, :, :rows], None, dim**-0.5)
        newest = min(rows, row_sizes[-1])
        return torch.equal(found[:, :, -newest:], attend(2, newest, rows, torch.arange(rows - newest, rows)))

    key_multiple = next(filter(ignores_keys_past_the_last, (64, 128, 256)), SPLIT)
    return Sizes(row_sizes, key_multiple, all(causal_agrees(rows) for rows in _CAUSAL_ROWS))


@lru_cache
def measured_fold(dtype: torch.dtype, dim: int, kv_heads: int, group: int, threads: int) -> tuple[int, int]:
    """How many KV heads of a decoding sequence may be computed as one wide head, and on how many query rows.

    In a fold of `f` the keys of `f` heads lie side by side, and each head's `group` query rows are zero outside their
    part. Zeros add nothing, but may meet another order of summation, so the result is compared with `f` = 1. Wider
    than _MAX_FOLDED_DIM the multiplications with zero cost more than is saved.
    """
    sizes = measured_sizes(dtype, dim, threads)
    one = next(size for size in sizes.rows if size >= group)
    generator = torch.Generator().manual_seed(0)
    # Many queries: a sum in another order moves few weights far enough to be rounded to another neighbour.
    q = (3 * torch.randn(64, kv_heads, one, dim, generator=generator)).to(dtype)
    k = torch.randn(kv_heads, 2 * SPLIT, dim, generator=generator).to(dtype)
    v = 256 * torch.randn(kv_heads, 2 * SPLIT, dim, generator=generator)
    v = (v - v.roll(1, dims=1)).to(dtype)

    def attend(queries: Tensor, folded: int, keys: int) -> Tensor:
        positions = torch.tensor([keys - 1, keys // 2]).repeat(32)
        mask = additive_mask(positions, torch.tensor([0]), keys, None, dtype).view(64, 1, 1, keys)
        wide_k, wide_v = (
            x[:, :keys].reshape(-1, folded, keys, dim).transpose(1, 2).reshape(1, -1, keys, folded * dim)
            for x in (k, v)
        )
        wide_k, wide_v = wide_k.expand(64, -1, -1, -1), wide_v.expand(64, -1, -1, -1)
        return flash(queries, wide_k, wide_v, mask.expand(-1, -1, queries.shape[2], -1), dim**-0.5)

    def agrees(folded: int, rows: int, keys: int) -> bool:
        expected = attend(q, 1, keys)[:, :, :group]
        heads = q[:, :, :group].reshape(64, -1, folded, group, 1, dim)
        wide = (heads * torch.eye(folded, dtype=dtype)[:, None, :, None]).view(64, -1, folded * group, folded * dim)
        found = attend(F.pad(wide, (0, 0, 0, rows - folded * group)), folded, keys)[:, :, : folded * group]
        own = found.reshape(64, -1, folded, group, folded, dim).diagonal(dim1=2, dim2=4)
        return torch.equal(own.permute(0, 1, 4, 2, 3).reshape(expected.shape), expected)

    lengths = (sizes.key_multiple, SPLIT, SPLIT + sizes.key_multiple, 2 * SPLIT)
    for folded in range(min(kv_heads, max(1, _MAX_FOLDED_DIM // dim)), 0, -1):
        padded = next((size for size in sizes.rows if size >= folded * group), 0)
        if kv_heads % folded == 0:
            for rows in sorted({folded * group, padded or folded * group}):
                if all(agrees(folded, rows, keys) for keys in lengths):
                    return folded, rows
    return 1, one


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


def pad_keys(num_keys: int, multiple: int) -> int:
    return -(-num_keys // multiple) * multiple


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


def additive_mask(positions: Tensor, firsts: Tensor, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """`[len(positions), length]`: 0 where a row at its position sees the key `firsts + column`, else hugely negative.

    Finite, so that a row that sees nothing of one split gives it weight 0 later, not NaN.
    """
    age = positions[:, None] - (firsts[:, None] + torch.arange(length))
    hidden = age < 0 if window is None else (age < 0) | (age >= window)
    return torch.zeros(age.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min / 2)
