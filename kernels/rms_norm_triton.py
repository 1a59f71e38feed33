"""Triton kernel of rms_norm.py: one program per row."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm`."""
    dim = x.shape[-1]
    rows = x.reshape(-1, dim)
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if len(rows):
        assert rows.stride(1) == weight.stride(0) == 1
        block = triton.next_power_of_2(dim)
        _rms_norm_kernel[(len(rows),)](rows, weight, normed, rows.stride(0), eps, DIM=dim, BLOCK=block)
    return normed


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    weight_ptr,
    normed_ptr,
    x_stride,
    eps,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, axis=0) / DIM + eps) * weight
    tl.store(normed_ptr + row * DIM + column, normed.to(normed_ptr.dtype.element_ty), mask=inside)
