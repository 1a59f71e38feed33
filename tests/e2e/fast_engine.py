"""An engine that is not exact, as where math libraries choose the order of a sum by the size of the batch: on GPUs.

On a CPU every engine is exact (docs/explanation/architecture.md), so here it is done by hand.
"""

from multiprocessing.connection import Connection

import torch.nn.functional as F
from torch import Tensor

from penstock.engine.config import EngineConfig
from penstock.kernels.swiglu import swiglu


def run_fast_engine(config: EngineConfig, connection: Connection) -> None:
    """Main function of the engine process, as `penstock.engine.process.run_engine`."""
    from penstock.engine.model import decoder
    from penstock.engine.process import run_engine

    decoder.linear = linear
    decoder.gated_linear = lambda x, weight, bias=None: swiglu(linear(x, weight, bias))
    decoder.pack_weight = decoder.pack_gated_weight = lambda weight: weight
    run_engine(config, connection)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """As kernels.linear: in two parts, each rounded, which meet elsewhere for every number of rows."""
    middle = 8 + 4 * (len(x) % 8)
    product = F.linear(x[:, :middle], weight[:, :middle], bias) + F.linear(x[:, middle:], weight[:, middle:])
    return product if residual is None else product + residual
