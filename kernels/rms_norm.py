"""Root-mean-square norm, alone and fused with the residual addition before it (Zhang & Sennrich 2019, equation 4).

rms_norm(x) = x / sqrt(mean(x^2) + eps) * weight
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension of x `[..., dim]` with weight `[dim]`, in float32; returns x's dtype."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`residual + x`, normalised, and the sum itself: `(normed, new_residual)`. Neither input is changed."""
    new_residual = x + residual
    return rms_norm(new_residual, weight, eps), new_residual
