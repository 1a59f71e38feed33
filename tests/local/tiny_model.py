"""A tiny model folder with random weights and the demonstration model's tokenizer: loads in milliseconds."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from penstock.demo import MODEL_FOLDER

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 64, 2, 4, 2, 16, 128


def write_tiny_model(folder: Path) -> Path:
    """Writes a Qwen3 checkpoint of two layers to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, folder / name)
    vocab = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) + 64  # room for special tokens
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INNER,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(vocab), folder / "model.safetensors")
    return folder


def _weights(vocab: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return 0.3 * torch.randn(rows, columns, generator=random)

    weights = {"model.embed_tokens.weight": matrix(vocab, HIDDEN), "model.norm.weight": torch.ones(HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for norm, size in (("input_layernorm", HIDDEN), ("post_attention_layernorm", HIDDEN)):
            weights[f"{prefix}.{norm}.weight"] = torch.ones(size)
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            weights[f"{prefix}.self_attn.{name}_proj.weight"] = matrix(rows * HEAD_DIM, HIDDEN)
        weights[f"{prefix}.self_attn.o_proj.weight"] = matrix(HIDDEN, HEADS * HEAD_DIM)
        for name in ("q_norm", "k_norm"):
            weights[f"{prefix}.self_attn.{name}.weight"] = torch.ones(HEAD_DIM)
        for name, rows, columns in (("gate", INNER, HIDDEN), ("up", INNER, HIDDEN), ("down", HIDDEN, INNER)):
            weights[f"{prefix}.mlp.{name}_proj.weight"] = matrix(rows, columns)
    return weights
