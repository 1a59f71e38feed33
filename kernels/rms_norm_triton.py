"""Triton kernel of rms_norm.py: one program per row, the addition of the residual fused in."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm`."""
    normed, _ = _launch(x, None, weight, eps)
    return normed


def add_rms_norm_triton(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `add_rms_norm`."""
    return _launch(x, residual, weight, eps)


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dim = x.shape[-1]
    rows = x.reshape(-1, dim)
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if residual is None:
        total, residual_rows = normed, rows
    else:
        total, residual_rows = torch.empty_like(normed), residual.reshape(-1, dim)
    if len(rows):
        assert rows.stride(1) == residual_rows.stride(1) == weight.stride(0) == 1
        _rms_norm_kernel[(len(rows),)](
            rows,
            residual_rows,
            weight,
            normed,
            total,
            rows.stride(0),
            residual_rows.stride(0),
            eps,
            DIM=dim,
            BLOCK=triton.next_power_of_2(dim),
            ADD=residual is not None,
        )
    return normed, total


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    normed_ptr,
    total_ptr,
    x_stride,
    residual_stride,
    eps,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
    if ADD:
        residual = tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0.0)
        # Rounded before it is normalised, as the twin does: the next layer adds to the rounded sum.
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(total_ptr + row * DIM + column, x, mask=inside)
    x = x.to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, axis=0) / DIM + eps) * weight
    tl.store(normed_ptr + row * DIM + column, normed.to(normed_ptr.dtype.element_ty), mask=inside)
