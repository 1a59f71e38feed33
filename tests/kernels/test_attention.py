"""Paged attention on CPU: right by the formula, blind to stale slots, and bitwise the same however it is batched."""

import pytest
import torch
from torch import Tensor

from penstock.kernels.attention import AttentionBatch, paged_attention
from penstock.kernels.flash import measured_sizes
from penstock.kernels.rows import num_threads
from tests.kernels.paged import attend_by_formula, make_batch, write_contexts

HEADS = [(9, 3, 64), (5, 5, 16), (14, 2, 80), (4, 1, 128)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def random_contexts(
    lengths: list[int], kv_heads: int, dim: int, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    keys = [torch.randn(length, kv_heads, dim).to(dtype) for length in lengths]
    values = [torch.randn(length, kv_heads, dim).to(dtype) for length in lengths]
    return keys, values


@pytest.mark.parametrize("window", [None, 7, 40])
@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_batch_among_nan_slots_follows_the_formula(
    dtype: torch.dtype, heads: int, kv_heads: int, dim: int, block_size: int, window: int | None
) -> None:
    torch.manual_seed(0)
    lengths, rows = [1, 33, 5, 70, 64], [1, 33, 1, 17, 1]
    batch = make_batch(lengths, rows, block_size)
    keys, values = random_contexts(lengths, kv_heads, dim, dtype)
    q = torch.randn(sum(rows), heads, dim).to(dtype)
    kv = write_contexts(batch, keys, values, block_size)[:, :, 1]
    out = paged_attention(q, kv, batch, scale=dim**-0.5, window=window)
    expected = attend_by_formula(q, keys, values, batch, dim**-0.5, window)
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (2, 2, 80), (8, 2, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_bitwise_the_same_in_every_batch_chunking_block_size_and_thread_count(
    dtype: torch.dtype, heads: int, kv_heads: int, dim: int, window: int | None
) -> None:
    torch.manual_seed(0)
    lengths = [1300, 700, 40, 513]
    keys, values = random_contexts(lengths, kv_heads, dim, dtype)
    queries = [torch.randn(length, heads, dim).to(dtype) for length in lengths]
    steps = [  # (KV length, rows) of each sequence
        [(1300, 777), (700, 100), (40, 3), (513, 13)],
        [(1200, 200), (500, 1), (30, 7), (513, 1)],
        [(1300, 1), (700, 1), (40, 1), (513, 1)],
        [(1283, 1), (683, 1), (23, 1), (496, 1)],
        [(600, 1), (1, 1), (2, 1), (512, 1)],
    ]
    expected: list[Tensor] = []
    for block_size in (8, 16, 32):
        whole = make_batch(lengths, lengths, block_size)
        kv = write_contexts(whole, keys, values, block_size)[:, :, 1]
        if not expected:
            with num_threads(1):
                one_prompt_each = paged_attention(torch.cat(queries), kv, whole, scale=dim**-0.5, window=window)
            expected = list(one_prompt_each.split(lengths))
        for threads in (1, 2) if block_size == 16 else (1,):
            with num_threads(threads):
                for step in steps:
                    out = paged_attention(
                        torch.cat([q[length - rows : length] for q, (length, rows) in zip(queries, step, strict=True)]),
                        kv,
                        a_later_step(whole, step),
                        scale=dim**-0.5,
                        window=window,
                    )
                    parts = out.split([rows for _, rows in step])
                    for seq, (part, (length, rows)) in enumerate(zip(parts, step, strict=True)):
                        where = f"sequence {seq}, rows {length - rows}..{length}, block size {block_size}"
                        assert torch.equal(part, expected[seq][length - rows : length]), where


def a_later_step(whole: AttentionBatch, step: list[tuple[int, int]]) -> AttentionBatch:
    return AttentionBatch(
        query_starts=torch.tensor([0, *(rows for _, rows in step)], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        context_lens=torch.tensor([length for length, _ in step], dtype=torch.int32),
        block_tables=whole.block_tables,
        slots=whole.slots[:0],
        positions=torch.cat([torch.arange(length - rows, length) for length, rows in step]),
        max_query_len=max(rows for _, rows in step),
        max_context_len=max(length for length, _ in step),
    )


def test_many_decoding_sequences_of_unlike_lengths_equal_one_at_a_time() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(1, 1500, (24,)).tolist()
    keys, values = random_contexts(lengths, 2, 16, torch.bfloat16)
    q = torch.randn(len(lengths), 6, 16).bfloat16()
    batch = make_batch(lengths, [1] * len(lengths), 16)
    kv = write_contexts(batch, keys, values, 16)[:, :, 1]
    together = paged_attention(q, kv, batch, scale=0.25)
    for seq, length in enumerate(lengths):
        alone = make_batch([length], [1], 16)
        kv_alone = write_contexts(alone, [keys[seq]], [values[seq]], 16)[:, :, 1]
        assert torch.equal(paged_attention(q[seq : seq + 1], kv_alone, alone, scale=0.25)[0], together[seq])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_measured_keys_multiple_divides_the_split(dtype: torch.dtype) -> None:
    sizes = measured_sizes(dtype, 64, 3, torch.get_num_threads())
    assert sizes.rows == tuple(sorted(sizes.rows))
    assert 512 % sizes.key_multiple == 0
