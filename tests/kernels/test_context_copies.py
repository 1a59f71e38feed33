"""Copies of decoding contexts: bitwise what the gather gives, whoever comes, goes, grows or finds no room."""

import random

import pytest
import torch
from torch import Tensor

from penstock.kernels.attention import AttentionBatch, paged_attention
from penstock.kernels.context_copies import ContextCopies, DecodingContext
from penstock.kernels.rows import num_threads

BLOCK_SIZE = 16


class Pool:
    """Sequences of random KV that decode in shuffled blocks among NaN, in two layers."""

    def __init__(self, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
        self.pool = torch.full((512, kv_heads, 2, 2, BLOCK_SIZE, dim), torch.nan, dtype=dtype)
        self.q_shape = (heads, dim)
        self.free = list(range(512))
        random.Random(0).shuffle(self.free)
        self.blocks: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}

    def join(self, key: int, length: int) -> None:
        self.blocks[key], self.lengths[key] = [], 0
        for _ in range(length):
            self.append(key)

    def append(self, key: int) -> None:
        block, offset = divmod(self.lengths[key], BLOCK_SIZE)
        if block == len(self.blocks[key]):
            self.blocks[key].append(self.free.pop())
        slot = self.pool[self.blocks[key][block], :, :, :, offset]
        slot.copy_(torch.randn(slot.shape))
        self.lengths[key] += 1

    def leave(self, key: int) -> None:
        self.free += self.blocks[key]
        self.pool[self.blocks.pop(key)] = torch.nan
        del self.lengths[key]

    def attend(self, keys: list[int], copies: ContextCopies | None) -> list[Tensor]:
        """One row of each sequence, and of one more (the first), which prefills two rows."""
        torch.manual_seed(len(keys))
        sequences, rows = [*keys, keys[0]], [1] * len(keys) + [min(2, self.lengths[keys[0]])]
        width = max(len(self.blocks[key]) for key in keys)
        decoding = [DecodingContext(key, row, self.lengths[key], self.blocks[key]) for row, key in enumerate(keys)]
        batch = AttentionBatch(
            query_starts=torch.tensor([0, *rows]).cumsum(0, dtype=torch.int32),
            context_lens=torch.tensor([self.lengths[key] for key in sequences], dtype=torch.int32),
            block_tables=torch.tensor(
                [self.blocks[key] + [0] * (width - len(self.blocks[key])) for key in sequences], dtype=torch.int32
            ),
            slots=torch.empty(0, dtype=torch.int64),
            positions=torch.empty(0, dtype=torch.int64),
            max_query_len=2,
            max_context_len=max(self.lengths.values()),
            copied=copies.step(decoding, sum(rows)) if copies else (),
        )
        q = 3 * torch.randn(sum(rows), *self.q_shape).to(self.pool.dtype)
        return [paged_attention(q, self.pool[:, :, layer], batch, scale=0.2) for layer in (0, 1)]


@pytest.mark.parametrize("max_tokens", [4096, 600, 0])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 80), (6, 1, 16), (8, 2, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_equal_the_gather_while_sequences_come_grow_and_go(
    dtype: torch.dtype, heads: int, kv_heads: int, dim: int, max_tokens: int
) -> None:
    rng = random.Random(1)
    torch.manual_seed(1)
    pool = Pool(heads, kv_heads, dim, dtype)
    copies = ContextCopies(pool.pool, heads, max_tokens)
    copied = 0
    for step in range(60):
        if step % 3 == 0 and len(pool.lengths) < 8:
            pool.join(step, rng.choice((0, 1, 60, 120, 250, 380, 511)))
        for key in list(pool.lengths):
            pool.append(key)
        if len(pool.lengths) > 1 and rng.random() < 0.2:
            pool.leave(rng.choice(list(pool.lengths)))
        keys = rng.sample(
            sorted(pool.lengths), rng.randint(1, len(pool.lengths)) if step % 5 == 0 else len(pool.lengths)
        )
        with num_threads(1 + step % 2):
            found, expected = pool.attend(keys, copies), pool.attend(keys, None)
        for layer in (0, 1):
            assert torch.equal(found[layer], expected[layer]), f"step {step}, layer {layer}"
        held = sum(arena.tokens for arena in copies._arenas.values())
        assert held <= max_tokens
        copied = max(copied, held)
    assert (copied > 0) == (max_tokens > 0)


def test_a_row_is_reused_without_what_its_last_owner_left() -> None:
    pool = Pool(3, 1, 16, torch.float32)
    copies = ContextCopies(pool.pool, 3, 256)
    pool.join(0, 100)
    pool.pool[pool.blocks[0]] = torch.nan  # a broken sequence
    assert pool.attend([0], copies)[0].isnan().any()
    pool.leave(0)
    pool.join(1, 20)
    assert torch.equal(pool.attend([1], copies)[0], pool.attend([1], None)[0])
