"""Rotary position embedding: from a checkpoint's scaling rule to one table of cosines and sines.

Knows the rules (default, linear, llama3, yarn); applying the table is the kernel's work. Every rule computes in fp32
in the order in which transformers does, so that the tables agree bit for bit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """How positions become angles. Fields that `kind` does not use keep their defaults."""

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    """By how much the context was stretched."""
    original_context_tokens: int = 0
    """Context of the pretraining (llama3, yarn)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    """Multiplies cosines and sines, which scales attention logits by its square (yarn)."""

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> "RopeConfig":
        """From transformers' `rope_parameters` (v5; it also standardizes the older `rope_scaling`).

        Raises ValueError for an unknown kind and for missing or impossible values.
        """
        kind = parameters.get("rope_type", "default")
        if kind not in KINDS:
            raise ValueError(f"rope type {kind!r} is not supported; known are {', '.join(KINDS)}")
        if parameters.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise ValueError(f"partial_rotary_factor {parameters['partial_rotary_factor']} is not supported, only 1.0")
        values: dict[str, Any] = {"kind": kind, "theta": _positive(parameters, "rope_theta")}
        if kind != "default":
            values["factor"] = _positive(parameters, "factor")
        if kind in ("llama3", "yarn"):
            values["original_context_tokens"] = int(_positive(parameters, "original_max_position_embeddings"))
        if kind == "llama3":
            low, high = _positive(parameters, "low_freq_factor"), _positive(parameters, "high_freq_factor")
            if low >= high:
                raise ValueError(f"low_freq_factor {low} must be smaller than high_freq_factor {high}")
            values |= {"low_freq_factor": low, "high_freq_factor": high}
        if kind == "yarn":
            values["beta_fast"] = float(parameters.get("beta_fast") or 32.0)  # the paper's, as in transformers
            values["beta_slow"] = float(parameters.get("beta_slow") or 1.0)
            values["truncate"] = bool(parameters.get("truncate", True))
            values["attention_factor"] = _yarn_attention_factor(parameters, values["factor"])
        return cls(**values)

    def stretched_context_tokens(self, declared: int) -> int:
        """The context that the checkpoint serves, of which `declared` is its `max_position_embeddings`.

        Under yarn some checkpoints (Qwen2.5, Qwen3) leave the pretrained length there and state the stretch apart.
        """
        if self.kind == "yarn":
            return max(declared, round(self.original_context_tokens * self.factor))
        return declared


def cos_sin_table(
    rope: RopeConfig, head_dim: int, num_positions: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """[num_positions, head_dim] fp32: per position the cosines of its head_dim/2 angles, then their sines."""
    if torch.device(device).type == "meta":  # only its size counts, and `arange` there imports torch._dynamo: 2 s
        return torch.empty(num_positions, head_dim, dtype=torch.float32, device=device)
    positions = torch.arange(num_positions, dtype=torch.float32, device=device)
    angles = positions[:, None] * inverse_frequencies(rope, head_dim).to(device)
    return torch.cat((angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor), dim=-1)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """[head_dim / 2] fp32: radians per position of each rotated pair."""
    periods = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.kind == "linear":
        return 1.0 / periods / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, 1.0 / periods)
    if rope.kind == "yarn":
        return _yarn(rope, periods, head_dim)
    return 1.0 / periods


def _llama3(rope: RopeConfig, frequencies: torch.Tensor) -> torch.Tensor:
    """Llama 3.1's rule (Meta, llama-models, `apply_scaling`): long waves are stretched, short ones kept."""
    context, low, high = rope.original_context_tokens, rope.low_freq_factor, rope.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    smooth = (context / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    stretched = torch.where(wavelengths > context / low, frequencies / rope.factor, blended)
    return torch.where(wavelengths < context / high, frequencies, stretched)


def _yarn(rope: RopeConfig, periods: torch.Tensor, head_dim: int) -> torch.Tensor:
    """YaRN's "NTK-by-parts" (arXiv 2309.00071, section 3.2): blends by how often a pair turns within the context."""

    def pair_that_turns(rotations: float) -> float:
        turns = rope.original_context_tokens / (rotations * 2 * math.pi)
        return (head_dim * math.log(turns)) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001  # a step instead of a division by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (rope.factor * periods) * (1 - keep) + 1.0 / periods * keep


def _yarn_attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    """YaRN's temperature (section 3.4), or what the checkpoint states instead of it."""
    if parameters.get("attention_factor") is not None:
        return _positive(parameters, "attention_factor")

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    numerator, denominator = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if numerator and denominator:
        return mscale(numerator) / mscale(denominator)
    return mscale(1.0)


def _positive(parameters: Mapping[str, Any], key: str) -> float:
    value = parameters.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{key} must be a positive number, not {value!r}")
    return float(value)
