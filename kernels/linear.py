"""The one place that knows how to multiply by a weight matrix so that a row's result does not depend on its batch.

    linear(x) = x @ weight^T + bias

On CPU every product runs at row counts that give bitwise the same rows (see rows.py), with weights packed once at
load into the blocked order of oneDNN. Packing pays: one row times 576 x 576 in bf16 takes 43 us instead of 95 us, times
3072 x 576 300 us instead of 460 us (weights from memory, one thread, Intel with AMX, 2026-11-20).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels.rows import ROW_SIZES, agreeing_sizes, cancelling, num_threads, split_rows

# Orders to pack for, the quicker one for large batches first. On AMX only the second one sums alike at all row counts.
_PACK_FOR_ROWS = (64, 1)
# Multiply-adds that a measurement may spend on its largest row count: 50 ms for one shape on one core.
_MEASURE_BUDGET = 2**29
# Few rows of an output head are computed at a time, but always allow this many in one call.
_MIN_LARGEST = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x `[..., in]` times weight `[out, in]` transposed, plus bias `[out]`: `[..., out]` in x's dtype.

    `weight` is a plain tensor or what `pack_weight` made of it; the two may differ in the last bit.
    """
    if x.is_cuda:
        return F.linear(x, weight, bias)
    out_features, in_features = weight.shape
    rows = x.reshape(-1, in_features)
    sizes = row_sizes(x.dtype, out_features, in_features, packed=weight.is_mkldnn)
    parts = []
    start = 0
    for num_rows, padded_rows in split_rows(rows.shape[0], sizes):
        part = rows[start : start + num_rows]
        if padded_rows > num_rows:
            part = F.pad(part, (0, 0, 0, padded_rows - num_rows))
        parts.append(_multiply(part, weight, bias)[:num_rows])
        start += num_rows
    if not parts:
        return x.new_empty(*x.shape[:-1], out_features)
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*x.shape[:-1], out_features)


def pack_weight(weight: Tensor) -> Tensor:
    """Reorder a weight `[out, in]` for this CPU's matrix kernels: an opaque tensor of that shape, for `linear` alone.

    Returns `weight` itself where packing does not apply (on a GPU, or in a dtype without fast CPU kernels).
    """
    if weight.is_cuda or not _can_pack(weight.dtype):
        return weight
    return _pack(weight, _packing(weight.dtype, *weight.shape))


def row_sizes(dtype: torch.dtype, out_features: int, in_features: int, *, packed: bool) -> tuple[int, ...]:
    """The row counts at which a product of this shape is computed on CPU; measured at the first call (10 to 100 ms)."""
    return _sizes(dtype, out_features, in_features, packed, torch.get_num_threads())


@lru_cache
def _packing(dtype: torch.dtype, out_features: int, in_features: int) -> int:
    """The number of rows to pack for: the order of weights that sums alike at most row counts, seen with one thread."""
    x, weight = _operands(dtype, out_features, in_features)
    most = len(_sizes_within_budget(out_features, in_features))
    found: dict[int, int] = {}
    with num_threads(1):
        for pack_for_rows in _PACK_FOR_ROWS:
            packed = _pack(weight, pack_for_rows)
            if torch.equal(_multiply(x[-64:], packed, None)[-16:], _multiply(x[-16:], packed, None)):
                found[pack_for_rows] = len(_measure(x, packed))
                if found[pack_for_rows] >= most - 1:
                    break
    return max(found, key=lambda rows: found[rows], default=_PACK_FOR_ROWS[0])


@lru_cache
def _sizes(dtype: torch.dtype, out_features: int, in_features: int, packed: bool, threads: int) -> tuple[int, ...]:
    del threads  # only tells measurements with other numbers of threads apart
    x, weight = _operands(dtype, out_features, in_features)
    return _measure(x, _pack(weight, _packing(dtype, out_features, in_features)) if packed else weight)


def _measure(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    return agreeing_sizes(lambda n: _multiply(x[-n:], weight, None), _sizes_within_budget(*weight.shape))


def _operands(dtype: torch.dtype, out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    x, weight = cancelling(_sizes_within_budget(out_features, in_features)[-1], in_features, out_features)
    return x.to(dtype), weight.to(dtype)


def _sizes_within_budget(out_features: int, in_features: int) -> tuple[int, ...]:
    largest = max(_MIN_LARGEST, _MEASURE_BUDGET // (out_features * in_features))
    return tuple(size for size in ROW_SIZES if size <= largest)


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def _pack(weight: Tensor, for_rows: int) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, for_rows)
    return packed


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
