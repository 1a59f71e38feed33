"""Runs one planned step on the device: sequences become tensors here, and nowhere else."""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from penstock.engine.kv.layout import COPIED_SHARE, KVLayout
from penstock.engine.kv.pool import num_blocks_for
from penstock.engine.model import Decoder
from penstock.engine.sequence import Sequence
from penstock.kernels.attention import AttentionBatch
from penstock.kernels.context_copies import ContextCopies, DecodingContext


class Runner:
    """A decoder and the KV cache it computes on."""

    def __init__(self, decoder: Decoder, layout: KVLayout, num_blocks: int) -> None:
        self.decoder = decoder
        self.layout = layout
        self.kv = layout.allocate(num_blocks, decoder.device)
        self._copies: ContextCopies | None = None
        if not self.kv.is_cuda and decoder.config.has_full_attention:
            copied_tokens = int(num_blocks * layout.block_size * COPIED_SHARE)
            self._copies = ContextCopies(self.kv, decoder.config.num_heads, copied_tokens)

    def run(self, work: Seq[tuple[Sequence, int]]) -> Tensor:
        """Computes the next `rows` tokens of each sequence.

        Returns float32 logits [num_sampling, vocab_size] of the last token of each sequence that has no more tokens
        pending after this step, in the order of `work`. The step has retired when this returns.
        """
        token_ids: list[int] = []
        last_rows: list[int] = []
        for sequence, rows in work:
            token_ids += sequence.tokens(sequence.num_computed, sequence.num_computed + rows)
            if rows == sequence.num_pending:
                last_rows.append(len(token_ids) - 1)
        hidden = self.decoder.forward(self._tensor(token_ids, torch.int64), self._batch(work), self.kv)
        logits = self.decoder.logits(hidden[self._tensor(last_rows, torch.int64)])
        if self.kv.is_cuda:
            torch.cuda.synchronize(self.kv.device)
        return logits

    def copy_block(self, source: int, target: int) -> None:
        """Copy-on-write: `target` becomes a copy of `source`."""
        self.kv[target].copy_(self.kv[source])

    def poison(self, blocks: Seq[int]) -> None:
        """Fills blocks with NaN."""
        self.kv[list(blocks)] = float("nan")

    def _batch(self, work: Seq[tuple[Sequence, int]]) -> AttentionBatch:
        size = self.layout.block_size
        starts, lengths = [0], list[int]()
        positions, slots = list[int](), list[int]()
        tables: list[list[int]] = []
        decoding: list[DecodingContext] = []
        for sequence, rows in work:
            begin, end = sequence.num_computed, sequence.num_computed + rows
            if rows == 1:
                decoding.append(DecodingContext(sequence.number, starts[-1], end, sequence.blocks))
            starts.append(starts[-1] + rows)
            lengths.append(end)
            positions += range(begin, end)
            slots += [sequence.blocks[position // size] * size + position % size for position in range(begin, end)]
            tables.append(sequence.blocks[: num_blocks_for(end, size)])
        width = max(map(len, tables))
        return AttentionBatch(
            query_starts=self._tensor(starts, torch.int32),
            context_lens=self._tensor(lengths, torch.int32),
            block_tables=self._tensor([table + [0] * (width - len(table)) for table in tables], torch.int32),
            slots=self._tensor(slots, torch.int64),
            positions=self._tensor(positions, torch.int64),
            max_query_len=max(rows for _, rows in work),
            max_context_len=max(lengths),
            copied=self._copies.step(decoding, starts[-1]) if self._copies else (),
        )

    def _tensor(self, values: object, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.kv.device)
