"""The gated activation of Llama-like feed-forward layers (Shazeer 2020, equation 6).

swiglu(gate | up) = silu(gate) * up,    silu(x) = x * sigmoid(x)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements per thread from which torch's element-wise CPU kernels share the work (at::internal::GRAIN_SIZE).
_GRAIN = 32768


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up `[..., 2 * intermediate]`, gate first, to `[..., intermediate]` in the same dtype."""
    if gate_up.is_cuda:
        from penstock.kernels.swiglu_triton import swiglu_triton

        return swiglu_triton(gate_up)
    rows = gate_up.reshape(-1, gate_up.shape[-1])
    parts = []
    while len(rows):
        whole = _evenly_shared(len(rows), rows.shape[1] // 2)
        parts.append(_swiglu(rows[:whole]))
        rows = rows[whole:]
    out = parts[0] if len(parts) == 1 else torch.cat(parts or [rows.chunk(2, dim=-1)[0]])
    return out.view(*gate_up.shape[:-1], out.shape[-1])


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _evenly_shared(num_rows: int, width: int) -> int:
    """How many rows torch's threads share without cutting one (all rows where only one thread works).

    At a cut the last elements of a vector take the scalar `exp`, which rounds unlike the vectorised one (measured:
    1,001 rows of 101 fp32 elements differ between one and two threads). The end of a row is the same in every batch.
    """
    threads = min(torch.get_num_threads(), -(-num_rows * width // _GRAIN))
    return max(num_rows // threads * threads, 1) if threads > 1 else num_rows
