"""Contiguous copies of decoding sequences' KV, for CPU: a step appends one token to each instead of gathering all.

torch's flash kernel wants a sequence's keys in one piece; gathering them from their blocks at every step took as long
as the attention itself. So each decoding sequence has a row in an arena of rows of like capacity:

    buffer of one layer: [2 (K|V), rows, groups of KV heads, slots, heads of a group * dim]

The KV heads of a group lie side by side, as one wide head: its query rows are zero outside their own KV head's part,
and so is their score with every other. One product per group instead of one per head, and bitwise the same result,
which flash.measured_fold checks at start.

A row is filled from the blocks when a sequence appears, moves or was absent for a step; the rows' unused slots are
zero. All arenas together hold at most `max_tokens`; a sequence without room does without a copy.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from penstock.kernels.flash import additive_mask, flash, fold_queries, measured_fold, measured_sizes, pad_keys, unfold
from penstock.kernels.paged import head_row_numbers, head_rows


@dataclass(frozen=True, slots=True)
class DecodingContext:
    """A sequence with one row in this step."""

    key: int
    """The same in every step of the sequence, and never another's."""
    row: int
    """Of the step's query rows."""
    length: int
    """KV length including this step's token."""
    blocks: Sequence[int]

    def newest_slot(self, block_size: int) -> int:
        """Where this step's token lies: block * block_size + offset."""
        block, offset = divmod(self.length - 1, block_size)
        return self.blocks[block] * block_size + offset


@dataclass(eq=False, slots=True)
class _Arena:
    slots: int
    num_rows: int
    owners: list[int] = field(default_factory=list)
    """The keys of the sequences, row by row."""
    lengths: list[int] = field(default_factory=list)
    """Tokens copied, row by row; -1 for a row to be filled."""
    buffers: dict[int, Tensor] = field(default_factory=dict)
    """By the layer's storage offset."""

    @property
    def tokens(self) -> int:
        return self.slots * self.num_rows

    def keep(self, keys: Container[int]) -> None:
        """Removes the other sequences; the last row moves into a gap."""
        for row in reversed(range(len(self.owners))):
            if self.owners[row] not in keys:
                last, _ = self.owners.pop(), self.lengths.pop()
                if row < len(self.owners):
                    self.owners[row], self.lengths[row] = last, -1

    def add(self, keys: Iterable[int]) -> None:
        """Gives rows to those that have none, while there are any."""
        present = set(self.owners)
        new = [key for key in keys if key not in present][: self.num_rows - len(self.owners)]
        self.owners += new
        self.lengths += [-1] * len(new)


@dataclass(frozen=True, slots=True)
class _Fill:
    row: int
    length: int
    source: Tensor  # int64 [2 * groups * length * heads of a group], of the pool's head rows


@dataclass(frozen=True, slots=True)
class CopiedDecodes:
    """The sequences of one arena in one step; the same for all layers."""

    arena: _Arena
    contexts: tuple[DecodingContext, ...]  # in the order of the arena's rows
    rows: Tensor  # int64 [num_seqs] of the query rows
    all_rows: bool  # whether these are all query rows of the step, in order
    length: int
    mask: Tensor  # [num_seqs, 1, 1, length], added to the scores
    fills: tuple[_Fill, ...]
    newest: Tensor  # int64 [2 * num_seqs * kv_heads], of the pool's head rows
    target: Tensor  # int64 [2 * num_seqs * groups], of the buffer's rows of one group and slot
    folded: int  # KV heads of a group
    num_query_rows: int

    def attend(self, q: Tensor, kv: Tensor, scale: float) -> Tensor:
        """As `paged_attention`, for this arena's rows of q alone: `[num_seqs, heads, dim]`."""
        num_kv_heads = kv.shape[1]
        keys, values = self._updated(kv)
        queries = q if self.all_rows else q.index_select(0, self.rows)
        queries = fold_queries(queries, num_kv_heads, self.folded, self.num_query_rows)
        return unfold(flash(queries, keys, values, self.mask, scale), q.shape[1] // num_kv_heads, self.folded)

    def _updated(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """One layer's keys and values `[num_seqs, groups, length, folded * dim]` after this step's tokens."""
        _, num_kv_heads, _, _, dim = kv.shape
        arena, groups, width = self.arena, num_kv_heads // self.folded, self.folded * dim
        layer = int(kv.storage_offset())
        buffer = arena.buffers.get(layer)
        if buffer is None:
            buffer = torch.zeros(2, arena.num_rows, groups, arena.slots, width, dtype=kv.dtype)
            arena.buffers[layer] = buffer
        pool = head_rows(kv)
        for fill in self.fills:
            row = buffer[:, fill.row]
            row[:, :, : fill.length] = pool.index_select(0, fill.source).view(2, groups, fill.length, width)
            row[:, :, fill.length :] = 0
        buffer.view(-1, width).index_copy_(0, self.target, pool.index_select(0, self.newest).view(-1, width))
        used = buffer[:, : len(self.contexts), :, : self.length]
        return used[0], used[1]


class ContextCopies:
    """The arenas of one pool."""

    def __init__(self, pool: Tensor, num_heads: int, max_tokens: int) -> None:
        """`pool` `[num_blocks, kv_heads, layers, 2, block_size, dim]`."""
        self._layer = pool[:, :, 0]
        self._group = num_heads // pool.shape[1]
        self._max_tokens = max_tokens
        self._arenas: dict[int, _Arena] = {}

    def step(self, decoding: Iterable[DecodingContext], num_rows: int) -> tuple[CopiedDecodes, ...]:
        """Finds a row for each sequence, as far as there is room; `num_rows` query rows are in the step.

        Every layer of the step must then `attend` each of the results.
        """
        by_slots: dict[int, dict[int, DecodingContext]] = {}
        for context in decoding:
            by_slots.setdefault(self._capacity(context.length), {})[context.key] = context
        for slots, arena in self._arenas.items():
            arena.keep(by_slots.get(slots, ()))
        steps = []
        for slots, contexts in by_slots.items():
            arena = self._with_room(slots, len(contexts))
            arena.add(contexts)
            if arena.owners:
                steps.append(self._copied(arena, tuple(contexts[key] for key in arena.owners), num_rows))
        return tuple(steps)

    def _capacity(self, length: int) -> int:
        """Capacity of a row for `length` tokens: powers of two and what lies halfway, at least 128."""
        power = 1 << max(6, (length - 1).bit_length() - 1)
        slots = power * 3 // 2 if length <= power * 3 // 2 else power * 2
        return pad_keys(slots, self._key_multiple())

    def _key_multiple(self) -> int:
        _, kv_heads, _, _, dim = self._layer.shape
        threads = torch.get_num_threads()
        return measured_sizes(self._layer.dtype, dim, max(kv_heads, self._group), threads).key_multiple

    def _with_room(self, slots: int, num_sequences: int) -> _Arena:
        """The arena, with a power of two of rows at least, as far as they fit; growing empties it."""
        arena = self._arenas.get(slots) or _Arena(slots, 0)
        if arena.num_rows >= num_sequences:
            return arena
        others = {key: other for key, other in self._arenas.items() if other is not arena}
        room = self._max_tokens - sum(other.tokens for other in others.values() if other.owners)
        num_rows = min(1 << (num_sequences - 1).bit_length(), room // slots)
        if num_rows <= arena.num_rows:
            return arena
        if num_rows * slots + sum(other.tokens for other in others.values()) > self._max_tokens:
            others = {key: other for key, other in others.items() if other.owners}
        self._arenas = {**others, slots: _Arena(slots, num_rows)}
        return self._arenas[slots]

    def _copied(self, arena: _Arena, here: tuple[DecodingContext, ...], num_rows: int) -> CopiedDecodes:
        kv, block_size, num_kv_heads = self._layer, self._layer.shape[3], self._layer.shape[1]
        threads = torch.get_num_threads()
        folded, num_query_rows = measured_fold(kv.dtype, kv.shape[-1], num_kv_heads, self._group, threads)
        groups = num_kv_heads // folded
        fills = []
        for row, context in enumerate(here):
            copied = context.length - 1
            if arena.lengths[row] != copied:
                positions = torch.arange(copied)
                slots = torch.tensor(context.blocks)[positions // block_size] * block_size + positions % block_size
                source = head_row_numbers(slots, kv)
                source = source.view(-1, 2, groups, folded).permute(1, 2, 0, 3)
                fills.append(_Fill(row, copied, source.flatten()))
            arena.lengths[row] = context.length
        ends = torch.tensor([context.length for context in here])
        newest = torch.tensor([context.newest_slot(block_size) for context in here])
        starts = torch.arange(2)[:, None] * arena.num_rows + torch.arange(len(here))
        starts = (starts[:, :, None] * groups + torch.arange(groups)) * arena.slots
        length = pad_keys(max(context.length for context in here), self._key_multiple())
        rows = [context.row for context in here]
        return CopiedDecodes(
            arena=arena,
            contexts=here,
            rows=torch.tensor(rows),
            all_rows=rows == list(range(num_rows)),
            length=length,
            mask=additive_mask(ends - 1, torch.tensor([0]), length, None, kv.dtype).view(-1, 1, 1, length),
            fills=tuple(fills),
            newest=head_row_numbers(newest, kv).permute(1, 0, 2).flatten(),
            target=(starts + (ends - 1)[:, None]).flatten(),
            folded=folded,
            num_query_rows=num_query_rows,
        )
