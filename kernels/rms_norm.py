"""Root-mean-square norm (Zhang & Sennrich 2019, equation 4).

rms_norm(x) = x / sqrt(mean(x^2) + eps) * weight
"""

import torch
from torch import Tensor

# Rows at a time for each thread, so that the doubled rows stay in its L2 cache.
_ROWS_PER_THREAD = 128


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension of x `[..., dim]` with weight `[dim]`, in float32; returns x's dtype.

    `weight` may be what `double_weight` made of it. On CPU this is the first half of the layer norm of `x | -x`, whose
    mean is 0 and whose variance is mean(x^2): one fused kernel, where a sum of squares, a root and two products were
    eight (22 instead of 45 us for one row between two matrix products; 2-core Intel with AMX, 2026-11-21). It treats
    each row alone, so a row's result does not depend on the others.
    """
    if x.is_cuda:
        from penstock.kernels.rms_norm_triton import rms_norm_triton

        return rms_norm_triton(x, weight, eps)
    dim = x.shape[-1]
    weight = weight if len(weight) == 2 * dim else double_weight(weight)
    step = _ROWS_PER_THREAD * torch.get_num_threads()
    if x.numel() <= step * dim:
        return _norm(x, weight, eps)
    rows = x.reshape(-1, dim)
    return torch.cat([_norm(part, weight, eps) for part in torch.split(rows, step)]).view(x.shape)


def double_weight(weight: Tensor) -> Tensor:
    """A weight `[dim]` as the CPU kernel wants it, `[2 * dim]`; on a GPU the weight itself."""
    return weight if weight.is_cuda else weight.repeat(2)


def _norm(x: Tensor, doubled_weight: Tensor, eps: float) -> Tensor:
    doubled = torch.cat((x, -x), dim=-1)
    return torch.native_layer_norm(doubled, doubled_weight.shape, doubled_weight, None, eps)[0][..., : x.shape[-1]]
