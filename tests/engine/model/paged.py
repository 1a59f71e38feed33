"""Drives a decoder by hand-made batches over a KV pool full of NaN: no pool, no scheduler, no runner."""

from collections.abc import Sequence

import torch
from torch import Tensor

from penstock.engine.model import Decoder
from penstock.kernels.attention import AttentionBatch

BLOCK_SIZE = 4


class PagedSequences:
    """Some sequences in one pool, their blocks scattered over it. `position_shift` is a fault to inject."""

    def __init__(self, decoder: Decoder, num_sequences: int, max_tokens: int) -> None:
        config = decoder.config
        self.decoder = decoder
        self.max_blocks = -(-max_tokens // BLOCK_SIZE)
        num_blocks = num_sequences * self.max_blocks + 1
        shape = (num_blocks, config.num_kv_heads, config.num_layers, 2, BLOCK_SIZE, config.head_dim)
        self.kv = torch.full(shape, torch.nan, dtype=decoder.dtype)
        shuffled = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1))[:-1]
        self.tables = shuffled.view(num_sequences, self.max_blocks).to(torch.int32)
        self.lengths = [0] * num_sequences
        self.position_shift = 0

    def step(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Appends `rows[i]` to sequence i (nothing for an empty list) and returns each sequence's new logits."""
        active = [i for i, tokens in enumerate(rows) if tokens]
        positions = [torch.arange(self.lengths[i], self.lengths[i] + len(rows[i])) for i in active]
        slots = [
            self.tables[i, own // BLOCK_SIZE].long() * BLOCK_SIZE + own % BLOCK_SIZE
            for i, own in zip(active, positions, strict=True)
        ]
        for i in active:
            self.lengths[i] += len(rows[i])
        counts = torch.tensor([0] + [len(rows[i]) for i in active])
        batch = AttentionBatch(
            query_starts=counts.cumsum(0).int(),
            context_lens=torch.tensor([self.lengths[i] for i in active], dtype=torch.int32),
            block_tables=self.tables[active],
            slots=torch.cat(slots),
            positions=torch.cat(positions) + self.position_shift,
            max_query_len=int(counts.max()),
            max_context_len=max(self.lengths[i] for i in active),
        )
        token_ids = torch.tensor([token for i in active for token in rows[i]])
        logits = self.decoder.logits(self.decoder.forward(token_ids, batch, self.kv))
        parts = dict(zip(active, logits.split(counts[1:].tolist()), strict=True))
        return [parts.get(i, logits[:0]) for i in range(len(rows))]


def prefill(sequences: PagedSequences, prompts: Sequence[Sequence[int]], chunk: int) -> list[Tensor]:
    """Computes all prompts, `chunk` tokens of each per step, and returns the logits of each prompt's last token."""
    last = [torch.empty(0)] * len(prompts)
    for start in range(0, max(map(len, prompts)), chunk):
        for i, logits in enumerate(sequences.step([prompt[start : start + chunk] for prompt in prompts])):
            last[i] = logits[-1] if len(logits) else last[i]
    return last


def decode(sequences: PagedSequences, last: Sequence[Tensor], num_tokens: int) -> tuple[list[list[int]], list[Tensor]]:
    """Greedy: per sequence its next `num_tokens` tokens and the log-probabilities [num_tokens, vocab] behind them."""
    seen = [[logits] for logits in last]
    for _ in range(num_tokens - 1):
        step = sequences.step([[int(logits[-1].argmax())] for logits in seen])
        for logits, new in zip(seen, step, strict=True):
            logits.append(new[-1])
    stacked = [torch.stack(logits) for logits in seen]
    return [logits.argmax(-1).tolist() for logits in stacked], [logits.log_softmax(-1) for logits in stacked]
