"""The gated activation of Llama-like feed-forward layers (Shazeer 2020, equation 6).

swiglu(gate | up) = silu(gate) * up,    silu(x) = x * sigmoid(x)
"""

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up `[num_tokens, 2 * intermediate]`, gate first, to `[num_tokens, intermediate]`; computed in float32."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate.float()) * up.float()).to(gate_up.dtype)
