"""The memory arithmetic: what a model's weights cost, known before anything is allocated (KV: kv/layout.py)."""

import torch

from penstock.engine.model.config import ModelConfig
from penstock.engine.model.decoder import Decoder


def weight_bytes(config: ModelConfig, dtype: torch.dtype | None = None, max_context_tokens: int | None = None) -> int:
    """Bytes of a decoder in `dtype` (None: as saved), rotary tables included. Counted on torch's meta device."""
    decoder = Decoder(config, dtype or config.dtype, torch.device("meta"), max_context_tokens)
    return sum(tensor.nbytes for tensor in decoder.tensors())
