"""Tiny random-weight checkpoints of every family, made by transformers, which is the oracle of these tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

VOCAB_SIZE = 211
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Case:
    """One checkpoint: what it changes against the common shape. `std` and `seed` make its greedy outputs vary."""

    config: type[Any]
    changes: dict[str, Any] = field(default_factory=dict)
    std: float = 0.3
    seed: int = 0

    def build(self) -> PreTrainedModel:
        shape: dict[str, Any] = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "initializer_range": self.std,
        }
        torch.manual_seed(self.seed)
        model = AutoModelForCausalLM.from_config(
            self.config(**shape | self.changes), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        # Norms and biases start as ones and zeros, which would hide a mix-up.
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.data += 0.3 * torch.randn_like(parameter)
        return model


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
QWEN3_WINDOW = {"use_sliding_window": True, "sliding_window": 12}

CASES = {
    "llama": Case(LlamaConfig),
    "llama-llama3": Case(LlamaConfig, rope("llama3", **LLAMA3)),
    "llama-yarn": Case(LlamaConfig, rope("yarn", **YARN)),
    "llama-linear": Case(LlamaConfig, rope("linear", factor=4.0)),
    "llama-biases": Case(LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-9-heads-3-kv": Case(LlamaConfig, {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "llama-5-heads-5-kv": Case(LlamaConfig, {"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 5}),
    "llama-7-heads-1-kv": Case(LlamaConfig, {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1}),
    "mistral-window": Case(MistralConfig, {"sliding_window": 12}),
    "mistral-wide-heads": Case(MistralConfig, {"sliding_window": None, "head_dim": 24}),
    "qwen2": Case(Qwen2Config),
    "qwen2-tied": Case(Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-window": Case(Qwen2Config, {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
    "qwen3": Case(Qwen3Config, {"head_dim": 24}),
    "qwen3-tied": Case(Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-layer-types": Case(
        Qwen3Config,
        {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], **QWEN3_WINDOW},
    ),
}


def save(case: Case, folder: Path, **options: Any) -> PreTrainedModel:
    """Writes the checkpoint of `case` to `folder` and returns the model it came from."""
    model = case.build()
    model.save_pretrained(folder, **options)
    return model


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Replaces the checkpoint's one file of weights by what `change` makes of it."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
