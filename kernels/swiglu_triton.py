"""Triton kernel of swiglu.py: one program per row and 1,024 columns."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def swiglu_triton(gate_up: Tensor) -> Tensor:
    """As `swiglu`."""
    width = gate_up.shape[-1] // 2
    rows = gate_up.reshape(-1, 2 * width)
    out = torch.empty((*gate_up.shape[:-1], width), dtype=gate_up.dtype, device=gate_up.device)
    if len(rows):
        assert rows.stride(1) == 1
        block = min(_BLOCK, triton.next_power_of_2(width))
        _swiglu_kernel[(len(rows), triton.cdiv(width, block))](rows, out, rows.stride(0), WIDTH=width, BLOCK=block)
    return out


@triton.jit
def _swiglu_kernel(gate_up_ptr, out_ptr, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(gate_up_ptr + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * WIDTH + column, out.to(out_ptr.dtype.element_ty), mask=inside)
