"""The decoder as training sees it: Qwen3's arithmetic under Qwen3's parameter names, and nothing else.

Training wants one short graph that `torch.compile` fuses on a CPU; serving wants `Qwen3ForCausalLM`. Both read the
same state dict, so this module must keep the names and the arithmetic of transformers' `modeling_qwen3`
(`tests/demo/test_network.py` compares the logits). It knows nothing of text, tokenizers or optimisers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of the decoder: 3.3 M parameters, 6.6 MB in bf16, so that the repository can carry it."""

    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 100_000.0
    norm_eps: float = 1e-6


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys (Qwen3 technical report, section 2)."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        query_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, shape.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, eps=shape.norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_dim, eps=shape.norm_eps)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`hidden` [batch, num_tokens, hidden_size] attends to itself, causally."""
        heads = (*hidden.shape[:-1], -1, self.shape.head_dim)
        query = rotate(self.q_norm(self.q_proj(hidden).view(heads)).transpose(1, 2), cos, sin)
        key = rotate(self.k_norm(self.k_proj(hidden).view(heads)).transpose(1, 2), cos, sin)
        value = self.v_proj(hidden).view(heads).transpose(1, 2)
        group = self.shape.num_heads // self.shape.num_kv_heads
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Token ids to hidden states; `loss` ties the output head to the embedding."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.reset()

    def reset(self) -> None:
        """Small normal weights; projections back into the residual stream start at zero (each layer the identity)."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens` [batch, num_tokens] int64 to logits [batch, num_tokens, vocab_size]."""
        cos, sin = rotations(self.shape, tokens.shape[1])
        hidden = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        return F.linear(self.norm(hidden), self.embed_tokens.weight)

    def loss(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean of the next-token cross entropy; `weights` [batch, num_tokens] belongs to the token itself."""
        logits = self(tokens[:, :-1]).float().flatten(0, 1)
        losses = F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
        scale = weights[:, 1:].flatten()
        return (losses * scale).sum() / scale.sum()


def rotations(shape: DecoderShape, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [num_tokens, head_dim] of the rotary embedding (Su et al. 2021, section 3.4)."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(num_tokens, dtype=torch.float32), shape.rope_theta**-exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `heads` [batch, num_heads, num_tokens, head_dim] by the position of each token."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
