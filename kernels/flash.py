"""torch's CPU flash kernel, and what of its shapes agrees bitwise on this CPU: the ground exact mode stands on.

The kernel (torch 2.13, `_scaled_dot_product_flash_attention_for_cpu`) is the online softmax of Milakov & Gimelshein
2018 over splits of 512 keys counted from the first. Measured here at start:

- A query row's result does not depend on the number of rows, heads, sequences or threads, if the number of rows is
  one of a few (1, 2 and 33 rows differ, for example).
- Keys after the last visible one change nothing, bit for bit, nor do whole splits before the first one, if the number
  of keys is padded to a multiple within its last split (64 keys in bf16; 256 in fp32, where MKL blocks sums).
- The kernel's own causal path, which skips what no row sees, gives the same bits where rows and keys start together.
- Nor does it matter whether KV heads are computed one by one or side by side as one wide head.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels.rows import agreeing_sizes

# The kernel's own split of the keys: contexts start at multiples of it.
SPLIT = 512
# The query rows of one call. Up to 256: more would leave more of the square above the diagonal to be computed in vain.
_ROW_SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# The widest head that several KV heads are folded to.
_MAX_FOLDED_DIM = 256
# Row counts at which the causal path is compared: below and above those at which the kernel cuts rows otherwise.
_CAUSAL_ROWS = (64, 128, 256, 448, 512, 704, 768, 832, 896, 960, 1024)
# More heads than these change nothing any more.
_MAX_MEASURED_HEADS = 8


@dataclass(frozen=True, slots=True)
class Sizes:
    """What agrees bitwise on this CPU."""

    rows: tuple[int, ...]
    key_multiple: int
    causal: bool
    """Whether the causal path agrees with masks."""


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


def fold_queries(q: Tensor, kv_heads: int, folded: int, num_rows: int) -> Tensor:
    """Queries `[num_seqs, heads, dim]` of decoding sequences for KV heads that lie side by side, `folded` at a time.

    Returns `[num_seqs, kv_heads / folded, num_rows, folded * dim]`: each row zero outside its own KV head's part, and
    zero rows at the end.
    """
    num_seqs, heads, dim = q.shape
    group = heads // kv_heads
    wide = q.view(num_seqs, -1, folded, group, 1, dim) * _own_part(folded, q.dtype)
    wide = wide.view(num_seqs, -1, folded * group, folded * dim)
    return F.pad(wide, (0, 0, 0, num_rows - folded * group)) if num_rows > folded * group else wide


def unfold(found: Tensor, group: int, folded: int) -> Tensor:
    """What the rows of `fold_queries` found, `[num_seqs, heads, dim]`: of each row its own KV head's part."""
    num_seqs, groups, _, width = found.shape
    parts = found[:, :, : folded * group].view(num_seqs, groups, folded, group, folded, width // folded)
    return parts.diagonal(dim1=2, dim2=4).permute(0, 1, 4, 2, 3).reshape(num_seqs, -1, width // folded)


@lru_cache
def _own_part(folded: int, dtype: torch.dtype) -> Tensor:
    """`[folded, 1, folded, 1]`: 1 where a KV head of a fold meets itself."""
    return torch.eye(folded, dtype=dtype).view(folded, 1, folded, 1)


@lru_cache
def measured_sizes(dtype: torch.dtype, dim: int, heads: int, threads: int) -> Sizes:
    """Runs the kernel on fixed operands and compares; `threads` tells results apart.

    `heads` is the most heads of a call: how many there are decides, among other things, whether the kernel packs K.
    """
    del threads
    heads = min(heads, _MAX_MEASURED_HEADS)
    generator = torch.Generator().manual_seed(0)
    most = _ROW_SIZES[-1]
    q = (3 * torch.randn(2, heads, 2 * SPLIT, dim, generator=generator)).to(dtype)
    k = torch.randn(2, heads, 2 * SPLIT, dim, generator=generator).to(dtype)
    v = 256 * torch.randn(2, heads, 2 * SPLIT, dim, generator=generator)
    v = (v - v.roll(1, dims=2)).to(dtype)

    def attend(queries: Tensor, keys: int, positions: Tensor) -> Tensor:
        batch, num_heads, rows, _ = queries.shape
        mask = additive_mask(positions.expand(rows), torch.tensor([0]), keys, None, dtype).view(1, 1, rows, keys)
        return flash(queries, k[:batch, :num_heads, :keys], v[:batch, :num_heads, :keys], mask, dim**-0.5)

    def last_rows(rows: int) -> Tensor:
        before_last = torch.tensor([2 * SPLIT - 2])
        queries = q[:, :, most - rows : most]
        found = attend(queries, 2 * SPLIT, before_last)
        alone = attend(queries[:1, :1], 2 * SPLIT, before_last)
        return (found if torch.equal(found[:1, :1], alone) else found * torch.nan).permute(2, 0, 1, 3)

    row_sizes = agreeing_sizes(last_rows, _ROW_SIZES)
    some_rows = (row_sizes[0], row_sizes[-1])

    def ignores_keys_past_the_last(multiple: int) -> bool:
        calls = [(q[:, :, :rows], keys) for rows in some_rows for keys in range(multiple, SPLIT, multiple)]
        last = {keys: torch.tensor([keys - 1]) for _, keys in calls}
        return all(torch.equal(attend(rows, keys, last[keys]), attend(rows, SPLIT, last[keys])) for rows, keys in calls)

    def causal_agrees(num_rows: int) -> bool:
        found = flash(q[:, :, :num_rows], k[:, :, :num_rows], v[:, :, :num_rows], None, dim**-0.5)
        tile = max((size for size in row_sizes if size <= num_rows), default=0)
        tiles = [torch.arange(max(0, end - tile), max(tile, end)) for end in range(num_rows, 0, -tile)] if tile else []
        return all(torch.equal(found[:, :, rows], attend(q[:, :, rows], num_rows, rows)) for rows in tiles)

    key_multiple = next(filter(ignores_keys_past_the_last, (64, 128, 256)), SPLIT)
    causal_rows = [rows for rows in _CAUSAL_ROWS if rows % key_multiple == 0]
    return Sizes(row_sizes, key_multiple, all(causal_agrees(rows) for rows in causal_rows))


@lru_cache
def measured_fold(dtype: torch.dtype, dim: int, kv_heads: int, group: int, threads: int) -> tuple[int, int]:
    """How many KV heads of a decoding sequence may be computed as one wide head, and on how many query rows.

    In a fold of `f` the keys of `f` heads lie side by side, and each head's `group` query rows are zero outside their
    part. Zeros add nothing, but may meet another order of summation, so the result is compared with `f` = 1. Wider
    than _MAX_FOLDED_DIM the multiplications with zero cost more than is saved.
    """
    sizes = measured_sizes(dtype, dim, max(kv_heads, group), threads)
    one = next(size for size in sizes.rows if size >= group)
    generator = torch.Generator().manual_seed(0)
    # Many queries: a sum in another order moves few weights far enough to be rounded to another neighbour.
    q = (3 * torch.randn(64, kv_heads, one, dim, generator=generator)).to(dtype)
    k = torch.randn(kv_heads, 2 * SPLIT, dim, generator=generator).to(dtype)
    v = 256 * torch.randn(kv_heads, 2 * SPLIT, dim, generator=generator)
    v = (v - v.roll(1, dims=1)).to(dtype)

    def attend(queries: Tensor, folded: int, keys: int) -> Tensor:
        batch = len(queries)
        positions = torch.tensor([keys - 1, keys // 2]).repeat(32)[:batch]
        mask = additive_mask(positions, torch.tensor([0]), keys, None, dtype).view(batch, 1, 1, keys)
        wide_k, wide_v = (
            x[:, :keys].reshape(-1, folded, keys, dim).transpose(1, 2).reshape(1, -1, keys, folded * dim)
            for x in (k, v)
        )
        wide_k, wide_v = wide_k.expand(batch, -1, -1, -1), wide_v.expand(batch, -1, -1, -1)
        return flash(queries, wide_k, wide_v, mask.expand(-1, -1, queries.shape[2], -1), dim**-0.5)

    def agrees(folded: int, rows: int, keys: int) -> bool:
        expected = attend(q, 1, keys)[:, :, :group].flatten(1, 2)
        wide = fold_queries(q[:, :, :group].flatten(1, 2), kv_heads, folded, rows)
        return all(  # one product alone is computed by all threads
            torch.equal(unfold(attend(wide[:batch], folded, keys), group, folded), expected[:batch])
            for batch in (64, 2, 1)
        )

    lengths = (sizes.key_multiple, SPLIT, SPLIT + sizes.key_multiple, 2 * SPLIT)
    for folded in range(min(kv_heads, max(1, _MAX_FOLDED_DIM // dim)), 0, -1):
        padded = next((size for size in sizes.rows if size >= folded * group), 0)
        if kv_heads % folded == 0:
            for rows in sorted({folded * group, padded or folded * group}):
                if all(agrees(folded, rows, keys) for keys in lengths):
                    return folded, rows
    return 1, one


def pad_keys(num_keys: int, multiple: int) -> int:
    return -(-num_keys // multiple) * multiple


def additive_mask(positions: Tensor, firsts: Tensor, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """`[len(positions), length]`: 0 where a row at its position sees the key `firsts + column`, else hugely negative.

    Finite, so that a row that sees nothing of one split gives it weight 0 later, not NaN.
    """
    age = positions[:, None] - (firsts[:, None] + torch.arange(length))
    hidden = age < 0 if window is None else (age < 0) | (age >= window)
    return torch.zeros(age.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min / 2)
