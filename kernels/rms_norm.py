"""Root-mean-square norm, alone and fused with the residual addition before it (Zhang & Sennrich 2019, equation 4).

rms_norm(x) = x / sqrt(mean(x^2) + eps) * weight
"""

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension of x `[..., dim]` with weight `[dim]`, in float32; returns x's dtype.

    On CPU a row's result does not depend on the other rows: torch sums each row alone, in an order fixed by `dim`.
    """
    if x.is_cuda:
        from penstock.kernels.rms_norm_triton import rms_norm_triton

        return rms_norm_triton(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + residual`, normalised, and the sum itself, in x's dtype: `(normed, new_residual)`. Changes no input."""
    if x.is_cuda:
        from penstock.kernels.rms_norm_triton import add_rms_norm_triton

        return add_rms_norm_triton(x, residual, weight, eps)
    new_residual = x + residual
    return rms_norm(new_residual, weight, eps), new_residual
