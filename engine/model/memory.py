"""The memory arithmetic: what a model's weights cost, known before anything is allocated (KV: kv/layout.py)."""

import torch

from penstock.engine.model.config import ModelConfig
from penstock.engine.model.decoder import Decoder


def weight_bytes(
    config: ModelConfig,
    dtype: torch.dtype | None = None,
    max_context_tokens: int | None = None,
    *,
    packed: bool = False,
) -> int:
    """Bytes of a decoder in `dtype` (None: as saved), rotary tables included. Counted on torch's meta device.

    `packed`: as `Decoder.pack` leaves it on a CPU, where norm weights are doubled and a head that is tied to the
    embedding is a matrix of its own.
    """
    decoder = Decoder(config, dtype or config.dtype, torch.device("meta"), max_context_tokens)
    total = sum(tensor.nbytes for tensor in decoder.tensors())
    if packed:
        total += sum(norm.nbytes for norm in decoder.norms())
        total += decoder.embedding.nbytes if config.tied_embeddings else 0
    return total
