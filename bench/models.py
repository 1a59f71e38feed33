"""Model folders with random weights, written to a temporary place: benchmarks measure shapes, not answers."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SEED = 20261120


@dataclass(frozen=True)
class Shape:
    """A Llama decoder's shape. `parameters` counts what is stored (embeddings are tied)."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    context: int = 4096

    @property
    def parameters(self) -> int:
        head = self.hidden // self.heads
        attention = self.hidden * head * (2 * self.heads + 2 * self.kv_heads)
        return self.vocab * self.hidden + self.layers * (attention + 3 * self.hidden * self.intermediate)

    def kv_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        return 2 * self.layers * self.kv_heads * (self.hidden // self.heads) * bytes_per_number


SMALL = Shape("5m", hidden=256, layers=6, heads=8, kv_heads=2, intermediate=704, vocab=4096)
"""About the demonstration model's size."""
LLAMA_135M = Shape("135m", hidden=576, layers=30, heads=9, kv_heads=3, intermediate=1536, vocab=49_152)
"""The shape of PEERS.md and of SmolLM2-135M."""
SHAPES = {shape.name: shape for shape in (SMALL, LLAMA_135M)}


def write_model(shape: Shape, folder: Path) -> Path:
    """Writes config, bf16 weights, tokenizer and chat template of `shape` to `folder`. Same bytes on every call."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(_weights(shape), folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(shape, folder)
    return folder


def _weights(shape: Shape) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    head = shape.hidden // shape.heads

    def matrix(rows: int, columns: int) -> torch.Tensor:
        weight = torch.empty(rows, columns).normal_(std=1 / math.sqrt(columns), generator=generator)
        return weight.to(torch.bfloat16)

    tensors = {
        "model.embed_tokens.weight": matrix(shape.vocab, shape.hidden),
        "model.norm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16),
            prefix + "post_attention_layernorm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16),
            prefix + "self_attn.q_proj.weight": matrix(shape.heads * head, shape.hidden),
            prefix + "self_attn.k_proj.weight": matrix(shape.kv_heads * head, shape.hidden),
            prefix + "self_attn.v_proj.weight": matrix(shape.kv_heads * head, shape.hidden),
            prefix + "self_attn.o_proj.weight": matrix(shape.hidden, shape.heads * head),
            prefix + "mlp.gate_proj.weight": matrix(shape.intermediate, shape.hidden),
            prefix + "mlp.up_proj.weight": matrix(shape.intermediate, shape.hidden),
            prefix + "mlp.down_proj.weight": matrix(shape.hidden, shape.intermediate),
        }
    return tensors


def _write_tokenizer(shape: Shape, folder: Path) -> None:
    """One word per id, so that every token has text and a client sees each of them arrive."""
    special = {"<s>": 0, "</s>": 1}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = special | {letter: index for index, letter in enumerate(letters, len(special))}
    vocab |= {f"t{index}": index for index in range(len(vocab), shape.vocab)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "chat_template": template,
                "model_max_length": shape.context,
            },
            indent=2,
        )
    )
