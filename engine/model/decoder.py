"""The decoder of Llama, Mistral, Qwen2 and Qwen3: one module, since they differ in options, not in structure.

Per layer: norm, attention, norm, gated feed-forward; both halves add to the residual. Biases, the q/k norm and the
window are options of the config. Plain classes, no torch.nn: with a small model on a CPU the calls around the
arithmetic are what a step costs. Knows shapes and kernels; knows neither files nor sequences.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.engine.model.config import ModelConfig
from penstock.engine.model.rope import cos_sin_table
from penstock.kernels.attention import AttentionBatch, paged_attention
from penstock.kernels.linear import GatedWeight, gated_linear, linear, pack_gated_weight, pack_weight
from penstock.kernels.rms_norm import double_weight, rms_norm
from penstock.kernels.rope import rope_and_write

_NORMS = ("input_norm", "post_attention_norm", "q_norm", "k_norm")


class DecoderLayer:
    """The parameters of one layer; projections that read the same input are one matrix.

    `qkv` is [(heads + 2 * kv_heads) * head_dim, hidden], rows of q, then k, then v; `gate_up` is
    [2 * intermediate, hidden], gate first. Parameters that a family lacks are None.
    """

    __slots__ = (
        "down",
        "down_bias",
        "gate_up",
        "gate_up_bias",
        "input_norm",
        "k_norm",
        "output",
        "output_bias",
        "post_attention_norm",
        "q_norm",
        "qkv",
        "qkv_bias",
        "window",
    )

    def __init__(self, config: ModelConfig, window: int | None, dtype: torch.dtype, device: torch.device) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        hidden, intermediate, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        qkv_rows = (config.num_heads + 2 * config.num_kv_heads) * head_dim
        self.window = window
        self.input_norm = empty(hidden)
        self.qkv = empty(qkv_rows, hidden)
        self.qkv_bias = empty(qkv_rows) if config.qkv_bias else None
        self.q_norm = empty(head_dim) if config.qk_norm else None
        self.k_norm = empty(head_dim) if config.qk_norm else None
        self.output = empty(hidden, config.num_heads * head_dim)
        self.output_bias = empty(hidden) if config.output_bias else None
        self.post_attention_norm = empty(hidden)
        self.gate_up: Tensor | GatedWeight = empty(2 * intermediate, hidden)
        self.gate_up_bias = empty(2 * intermediate) if config.mlp_bias else None
        self.down = empty(hidden, intermediate)
        self.down_bias = empty(hidden) if config.mlp_bias else None


class Decoder:
    """A decoder-only model for inference. Fresh parameters are uninitialised; `load_model` fills them."""

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: torch.device, max_context_tokens: int | None = None
    ) -> None:
        """`max_context_tokens` below the config's own saves rotary table rows; positions must stay below it."""
        self.config = config
        self.dtype = dtype
        self.device = device
        self.max_context_tokens = min(max_context_tokens or config.max_context_tokens, config.max_context_tokens)
        self.embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = [DecoderLayer(config, window, dtype, device) for window in config.layer_windows]
        self.final_norm = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self.lm_head = self.embedding if config.tied_embeddings else torch.empty_like(self.embedding)
        self.cos_sin = cos_sin_table(config.rope, config.head_dim, self.max_context_tokens, device)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor the decoder holds, tied ones once."""
        yield from (self.embedding, self.final_norm, self.cos_sin)
        if self.lm_head is not self.embedding:
            yield self.lm_head
        for layer in self.layers:
            for name in DecoderLayer.__slots__:
                tensor = getattr(layer, name)
                if isinstance(tensor, Tensor):
                    yield tensor
                elif isinstance(tensor, GatedWeight):
                    yield from (tensor.gate, tensor.up)

    def norms(self) -> Iterator[Tensor]:
        """The weights of all norms."""
        yield self.final_norm
        for layer in self.layers:
            yield from (norm for name in _NORMS if (norm := getattr(layer, name)) is not None)

    def pack(self) -> None:
        """Reorders the matrices for this machine's kernels; call it once they are filled.

        A tied head is packed too, as a copy: it is a fifth of a small model's work.
        """
        for layer in self.layers:
            for name in ("qkv", "output", "down"):
                setattr(layer, name, pack_weight(getattr(layer, name)))
            assert isinstance(layer.gate_up, Tensor)
            layer.gate_up = pack_gated_weight(layer.gate_up)
            for name in _NORMS:
                if getattr(layer, name) is not None:
                    setattr(layer, name, double_weight(getattr(layer, name)))
        self.final_norm = double_weight(self.final_norm)
        self.lm_head = pack_weight(self.lm_head)

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, batch: AttentionBatch, kv: Tensor) -> Tensor:
        """Runs int64 `token_ids` [num_tokens] through all layers and returns their hidden [num_tokens, hidden_size].

        `kv` [num_blocks, kv_heads, layers, 2, block_size, head_dim] gains this step's keys and values. The result is
        normalised: `logits` takes the rows for which tokens are to be chosen.
        """
        config = self.config
        heads, kv_heads, head_dim, eps = config.num_heads, config.num_kv_heads, config.head_dim, config.rms_norm_eps
        split = (heads, kv_heads, kv_heads)
        qkv_shape = (len(token_ids), heads + 2 * kv_heads, head_dim)
        scale = head_dim**-0.5

        residual = F.embedding(token_ids, self.embedding)
        for layer, layer_kv in zip(self.layers, kv.unbind(2), strict=True):
            x = rms_norm(residual, layer.input_norm, eps)
            qkv = linear(x, layer.qkv, layer.qkv_bias).view(qkv_shape)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k, v = qkv.split_with_sizes(split, dim=1)
                qkv = torch.cat((rms_norm(q, layer.q_norm, eps), rms_norm(k, layer.k_norm, eps), v), dim=1)
            q = rope_and_write(qkv, self.cos_sin, batch, layer_kv)
            attended = paged_attention(q, layer_kv, batch, scale=scale, window=layer.window)
            residual = linear(attended.flatten(1), layer.output, layer.output_bias, residual)
            x = rms_norm(residual, layer.post_attention_norm, eps)
            x = gated_linear(x, layer.gate_up, layer.gate_up_bias)
            residual = linear(x, layer.down, layer.down_bias, residual)
        return rms_norm(residual, self.final_norm, eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [n, vocab_size] of the rows `hidden` [n, hidden_size] that were picked from `forward`'s result."""
        return linear(hidden, self.lm_head).float()
