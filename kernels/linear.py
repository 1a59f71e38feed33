"""The one place that knows how to multiply by a weight matrix so that a row's result does not depend on its batch.

    linear(x) = x @ weight^T + bias + residual
    gated_linear(x) = silu(x @ gate^T) * (x @ up^T)    (Shazeer 2020, equation 6)

On CPU every product runs at row counts that give bitwise the same rows (see rows.py), with weights packed once at
load into the blocked order of oneDNN. Packing pays: one row times 576 x 576 in bf16 takes 43 us instead of 95 us, times
3072 x 576 300 us instead of 460 us (weights from memory, one thread, Intel with AMX, 2026-11-20).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels.rows import ROW_SIZES, agreeing_sizes, cancelling, num_threads, split_rows
from penstock.kernels.swiglu import swiglu

# Orders to pack for, the quicker one for large batches first. On AMX only the second one sums alike at all row counts.
_PACK_FOR_ROWS = (64, 1)
# Multiply-adds that a measurement may spend on its largest row count: 3 ms a shape on a core with AMX, 100 ms without.
_MEASURE_BUDGET = 2**31
# Few rows of an output head are computed at a time, but always allow this many in one call.
_MIN_LARGEST = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """x `[..., in]` times weight `[out, in]` transposed, plus bias `[out]` and residual `[..., out]`: `[..., out]`.

    In x's dtype. `weight` is a plain tensor or what `pack_weight` made of it; the two may differ in the last bit.
    """
    if x.is_cuda:
        return _add_on_gpu(x, weight, bias, residual) if residual is not None else F.linear(x, weight, bias)
    kind: Kind = "plain" if not weight.is_mkldnn else "packed" if residual is None else "added"
    sizes = row_sizes(x.dtype, weight.shape[0], weight.shape[1], kind)
    if residual is None:
        return _in_calls(lambda rows: _multiply(rows, weight, bias), sizes, weight.shape[0], x)
    return _in_calls(lambda rows, added: _multiply_add(rows, weight, bias, added), sizes, weight.shape[0], x, residual)


@dataclass(frozen=True, slots=True)
class GatedWeight:
    """The packed halves of a gated layer's matrix, each `[intermediate, in]`: oneDNN joins silu and product to them."""

    gate: Tensor
    up: Tensor


def gated_linear(x: Tensor, weight: Tensor | GatedWeight, bias: Tensor | None = None) -> Tensor:
    """x `[..., in]` through a gated layer: `[..., intermediate]` in x's dtype.

    `weight` is `[2 * intermediate, in]`, gate first, or what `pack_gated_weight` made of it; bias `[2 * intermediate]`.
    """
    if isinstance(weight, Tensor):
        return swiglu(linear(x, weight, bias))
    gate_bias, up_bias = (None, None) if bias is None else bias.chunk(2)
    sizes = row_sizes(x.dtype, weight.gate.shape[0], weight.gate.shape[1], "gated")
    return _in_calls(lambda rows: _multiply_gated(rows, weight, gate_bias, up_bias), sizes, weight.gate.shape[0], x)


def _in_calls(multiply: Callable[..., Tensor], sizes: tuple[int, ...], out_features: int, *inputs: Tensor) -> Tensor:
    """`multiply` of the inputs' rows, in calls of measured sizes."""
    batch = inputs[0].shape[:-1]
    if len(batch) == 1 and batch[0] in sizes:
        return multiply(*inputs)
    rows = [operand.reshape(-1, operand.shape[-1]) for operand in inputs]
    parts = []
    start = 0
    for num_rows, padded_rows in split_rows(len(rows[0]), sizes):
        part = [operand[start : start + num_rows] for operand in rows]
        if padded_rows > num_rows:
            part = [F.pad(operand, (0, 0, 0, padded_rows - num_rows)) for operand in part]
        parts.append(multiply(*part)[:num_rows])
        start += num_rows
    if not parts:
        return inputs[0].new_empty(*batch, out_features)
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*batch, out_features)


def pack_weight(weight: Tensor) -> Tensor:
    """Reorder a weight `[out, in]` for this CPU's matrix kernels: an opaque tensor of that shape, for `linear` alone.

    Returns `weight` itself where packing does not apply (on a GPU, or in a dtype without fast CPU kernels).
    """
    if weight.is_cuda or not _can_pack(weight.dtype):
        return weight
    return _pack(weight, _packing(weight.dtype, *weight.shape))


def pack_gated_weight(weight: Tensor) -> Tensor | GatedWeight:
    """The same for a gated layer's matrix `[2 * intermediate, in]`, gate first, and for `gated_linear` alone."""
    if weight.is_cuda or not _can_pack(weight.dtype):
        return weight
    gate, up = weight.chunk(2)
    return GatedWeight(pack_weight(gate.contiguous()), pack_weight(up.contiguous()))


Kind = Literal["plain", "packed", "added", "gated"]
"""A product with a plain weight, with a packed one, with a residual added to it, and of a gated layer."""


def row_sizes(dtype: torch.dtype, out_features: int, in_features: int, kind: Kind) -> tuple[int, ...]:
    """The row counts at which a product of this shape is computed on CPU; measured at the first call (10 to 100 ms)."""
    return _sizes(dtype, out_features, in_features, kind, torch.get_num_threads())


@lru_cache
def _packing(dtype: torch.dtype, out_features: int, in_features: int) -> int:
    """The number of rows to pack for: the order of weights that sums alike at most row counts, seen with one thread."""
    x, weight = _operands(dtype, out_features, in_features)
    most = len(_sizes_within_budget(out_features, in_features))
    found: dict[int, int] = {}
    with num_threads(1):
        for pack_for_rows in _PACK_FOR_ROWS:
            packed = _pack(weight, pack_for_rows)
            if torch.equal(_multiply(x[-64:], packed)[-16:], _multiply(x[-16:], packed)):
                found[pack_for_rows] = len(_measure(x, packed, _multiply))
                if found[pack_for_rows] >= most - 1:
                    break
    return max(found, key=lambda rows: found[rows], default=_PACK_FOR_ROWS[0])


@lru_cache
def _sizes(dtype: torch.dtype, out_features: int, in_features: int, kind: Kind, threads: int) -> tuple[int, ...]:
    del threads  # only tells measurements with other numbers of threads apart
    x, weight = _operands(dtype, out_features, in_features)
    if kind != "plain":
        weight = _pack(weight, _packing(dtype, out_features, in_features))
    return _measure(x, weight, {"added": _add_little, "gated": _silu_and_product}.get(kind, _multiply))


def _measure(x: Tensor, weight: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> tuple[int, ...]:
    return agreeing_sizes(lambda n: multiply(x[-n:], weight), _sizes_within_budget(*weight.shape))


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


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _multiply_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias) + residual
    total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
    return total


def _multiply_gated(x: Tensor, weight: GatedWeight, gate_bias: Tensor | None, up_bias: Tensor | None) -> Tensor:
    gate = torch.ops.mkldnn._linear_pointwise(x, weight.gate, gate_bias, "swish", [], "")
    product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gate, weight.up, up_bias, "mul")
    return product


def _add_little(x: Tensor, weight: Tensor) -> Tensor:
    """To be measured: a residual of the size of the roundings, since a larger one would hide them."""
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(1, weight.shape[0], generator=generator).mul_(1e-6).to(x.dtype)
    return _multiply_add(x, weight, None, residual.expand(x.shape[0], -1).contiguous())


def _silu_and_product(x: Tensor, weight: Tensor) -> Tensor:
    """To be measured: both fused operations side by side, for in their product small differences would vanish.

    silu also sees sums of ordinary size (the first half of what cancels), where its exponential counts.
    """
    factors = x.new_full((x.shape[0], weight.shape[0]), 3)
    ordinary = torch.cat((x[:, : x.shape[1] // 2], x.new_zeros(x.shape[0], x.shape[1] - x.shape[1] // 2)), dim=1)
    silu, silu_of_sums = (
        torch.ops.mkldnn._linear_pointwise(operand, weight, None, "swish", [], "") for operand in (x, ordinary)
    )
    product = torch.ops.mkldnn._linear_pointwise.binary(x, factors, weight, None, "mul")
    return torch.cat((silu, silu_of_sums, product), dim=1)


def _add_on_gpu(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    if bias is not None:
        return F.linear(x, weight, bias) + residual
    return torch.addmm(residual.view(-1, len(weight)), x.reshape(-1, x.shape[-1]), weight.t()).view(residual.shape)
