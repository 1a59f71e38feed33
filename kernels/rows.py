"""Row counts at which a CPU kernel gives a row bitwise the same result, found by measurement.

Math libraries choose another kernel, with another order of summation, for another number of rows or threads. So in
exact mode a product is only ever computed with row counts that were seen to agree on this machine: `agreeing_sizes`
finds them once per process and shape, `split_rows` cuts a batch into them. Measured on two machines (2026-11-20):

    AMD EPYC, avx512_bf16      bf16 agrees at every row count; fp32 from 4 rows on
    Intel with AMX             bf16 agrees up to 32 rows and, differently, from 33 rows on (plain weights);
                               fp32 (MKL) has different results for 1 row, for 2 to 15 rows and from 16 rows on
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

ROW_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048)


def agreeing_sizes(run: Callable[[int], Tensor], sizes: Sequence[int]) -> tuple[int, ...]:
    """The largest group of `sizes` whose rows agree bitwise, also with this process's threads; smallest size first.

    `run(n)` computes the last `n` rows of one fixed input, `[n, ...]`. Feed it `cancelling` operands: plain random
    ones hide most differences of float32 sums behind the rounding to bf16. The group is chosen with one thread, and
    sizes that differ with more are dropped from it, so processes with other numbers of threads choose the same sums.
    """
    groups: list[dict[int, Tensor]] = []
    with num_threads(1):
        for size in sorted(sizes, reverse=True):
            rows = run(size)
            for group in groups:
                if torch.equal(next(iter(group.values()))[-size:], rows):
                    group[size] = rows
                    break
            else:
                groups.append({size: rows})
    chosen = max(groups, key=len)
    agreeing = chosen
    if torch.get_num_threads() > 1:
        agreeing = {size: rows for size, rows in chosen.items() if torch.equal(run(size), rows)}
    return tuple(sorted(agreeing or [max(chosen)]))


@lru_cache(maxsize=4096)
def split_rows(num_rows: int, sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Cut `num_rows` rows into calls `(rows, padded_rows)`: as few as possible, the last one padded up to a size."""
    largest = sizes[-1]
    calls = [(largest, largest)] * (num_rows // largest)
    if rest := num_rows % largest:
        calls.append((rest, next(size for size in sizes if size >= rest)))
    return tuple(calls)


def cancelling(num_rows: int, length: int, num_columns: int) -> tuple[Tensor, Tensor]:
    """Operands `[num_rows, length]` and `[num_columns, length]` whose products cancel: every rounding shows.

    Each product occurs twice, with both signs, at random places, so that the exact sum is zero and what remains is
    the rounding of the partial sums, which depends on the order of summation.
    """
    generator = torch.Generator().manual_seed(0)
    half = length // 2
    places = torch.randperm(length, generator=generator)
    left, right = torch.zeros(num_rows, length), torch.zeros(64, length)
    left[:, places[:half]] = left[:, places[half : 2 * half]] = torch.randn(num_rows, half, generator=generator)
    right[:, places[:half]] = torch.randn(64, half, generator=generator)
    right[:, places[half : 2 * half]] = -right[:, places[:half]]
    return left, right.repeat(-(-num_columns // 64), 1)[:num_columns]


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    """Run torch's CPU kernels on `threads` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
