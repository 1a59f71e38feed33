"""The memory arithmetic: what a model's weights and a token's KV cost, known before anything is allocated."""

import torch

from penstock.engine.model.config import ModelConfig
from penstock.engine.model.decoder import Decoder


def weight_bytes(config: ModelConfig, dtype: torch.dtype | None = None, max_context_tokens: int | None = None) -> int:
    """Bytes of a decoder in `dtype` (None: as saved), rotary tables included. Counted on torch's meta device."""
    decoder = Decoder(config, dtype or config.dtype, torch.device("meta"), max_context_tokens)
    return sum(tensor.nbytes for tensor in decoder.tensors())


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype | None = None) -> int:
    """Bytes of one token's keys and values over all layers, in `dtype` (None: as the weights were saved)."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * (dtype or config.dtype).itemsize
