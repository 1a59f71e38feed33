"""What the decoder must know of a checkpoint, read from its folder once and frozen.

transformers' own config classes interpret config.json (defaults, old spellings); this module refuses what the decoder
cannot serve exactly, so that nothing past it meets a surprise.
"""

import math
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from penstock.engine.model.folder import CONFIG, GENERATION_CONFIG, read_json
from penstock.engine.model.rope import RopeConfig
from penstock.errors import ModelError

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""The architectures that the decoder computes, each with its transformers model type."""

# transformers fills in the values of its flagship model where these are missing: weights of another shape at best.
_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape and the rules of one decoder-only model."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context_tokens: int
    rms_norm_eps: float
    rope: RopeConfig
    layer_windows: tuple[int | None, ...]
    """Per layer, how many of the latest tokens (itself included) a token attends to; None is all."""
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    eos_ids: tuple[int, ...]
    dtype: torch.dtype
    """What the checkpoint was saved in."""

    @property
    def has_full_attention(self) -> bool:
        """Whether some layer attends to all tokens."""
        return None in self.layer_windows


def load_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Reads config.json and generation_config.json in the folder `path`.

    Raises ModelError, naming the file and the reason, for an unknown architecture, missing or wrong values, broken
    JSON, and for what the decoder does not compute (another activation, RoPE rule, quantized weights).

    transformers is needed for this alone, and stays resident with what it imports (185 MB for Llama). So a process
    that has not imported it lets a child read the config; where it was preloaded for quick restarts, it is shared.
    """
    if "transformers.configuration_utils" in sys.modules:
        return _load(path)
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("fork")) as child:
        return child.submit(_load, path).result()


def _load(path: str | os.PathLike[str]) -> ModelConfig:
    file = Path(path) / CONFIG
    raw = read_json(file)
    architecture = _architecture(file, raw)
    try:
        for key in _REQUIRED:
            if raw.get(key) is None:
                raise ValueError(f"{key} is missing")
        if raw.get("quantization_config"):
            raise ValueError("quantization_config is set, but quantized weights are not supported")
        parsed = _parse(ARCHITECTURES[architecture], raw)
        generation = Path(path) / GENERATION_CONFIG
        stated = {file: raw} | ({generation: read_json(generation)} if generation.exists() else {})
        return _build(architecture, parsed, _eos_ids(stated, parsed.vocab_size))
    except (ModelError, ImportError):
        raise
    except Exception as error:  # transformers raises a dozen types here, some of them only its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{file} is not a usable {architecture} config: {reason}") from error


def _architecture(file: Path, raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures")
    if names is None:
        names = [name for name, model_type in ARCHITECTURES.items() if model_type == raw.get("model_type")]
    known = ", ".join(ARCHITECTURES)
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        asked = names if raw.get("architectures") else f"model_type {raw.get('model_type')!r}"
        raise ModelError(f"{file} names the architecture {asked}, which is not supported; known are {known}")
    architecture = str(names[0])
    if raw.get("model_type", ARCHITECTURES[architecture]) != ARCHITECTURES[architecture]:
        raise ModelError(
            f"{file}: model_type {raw['model_type']!r} contradicts {architecture}, "
            f"which is {ARCHITECTURES[architecture]!r}; known architectures are {known}"
        )
    return architecture


def _parse(model_type: str, raw: dict[str, Any]) -> Any:
    """transformers' config object.

    AutoConfig would choose the same class, but looking it up there imports the config of Llama, whose validators
    import attention kernels: 1.8 s and 160 MB resident (2-core host, transformers 5.23.0) for every other family.
    """
    module = import_module(f"transformers.models.{model_type}.configuration_{model_type}")
    return getattr(module, f"{model_type.capitalize()}Config").from_dict(dict(raw))


def _build(architecture: str, parsed: Any, eos_ids: tuple[int, ...]) -> ModelConfig:
    """Raises ValueError for values that no decoder could have, or that ours does not compute."""
    qwen2 = architecture == "Qwen2ForCausalLM"
    attention_bias = bool(getattr(parsed, "attention_bias", False))
    rope = RopeConfig.from_parameters(parsed.rope_parameters)
    config = ModelConfig(
        architecture=architecture,
        hidden_size=parsed.hidden_size,
        intermediate_size=parsed.intermediate_size,
        num_layers=parsed.num_hidden_layers,
        num_heads=parsed.num_attention_heads,
        num_kv_heads=parsed.num_key_value_heads,
        head_dim=getattr(parsed, "head_dim", None) or parsed.hidden_size // parsed.num_attention_heads,
        vocab_size=parsed.vocab_size,
        max_context_tokens=rope.stretched_context_tokens(parsed.max_position_embeddings),
        rms_norm_eps=parsed.rms_norm_eps,
        rope=rope,
        layer_windows=_layer_windows(architecture, parsed),
        tied_embeddings=bool(parsed.tie_word_embeddings),
        qkv_bias=qwen2 or attention_bias,
        output_bias=not qwen2 and attention_bias,
        mlp_bias=bool(getattr(parsed, "mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        eos_ids=eos_ids,
        dtype=parsed.dtype or torch.float32,
    )
    _check(config, parsed.hidden_act)
    return config


def _check(config: ModelConfig, activation: str) -> None:
    for name in ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be positive, not {getattr(config, name)}")
    if config.vocab_size < 1 or config.max_context_tokens < 1:
        raise ValueError("vocab_size and max_position_embeddings must be positive")
    if config.num_heads % config.num_kv_heads:
        raise ValueError(f"{config.num_heads} attention heads cannot share {config.num_kv_heads} key-value heads")
    if config.head_dim % 2:
        raise ValueError(f"head_dim {config.head_dim} is odd; rotary embedding turns pairs")
    if not 0 < config.rms_norm_eps < math.inf:
        raise ValueError(f"rms_norm_eps must be a positive number, not {config.rms_norm_eps}")
    windows = [window for window in config.layer_windows if window is not None]
    if windows and min(windows) < 1:
        raise ValueError(f"sliding_window must be positive, not {min(windows)}")
    if activation not in ("silu", "swish"):
        raise ValueError(f"hidden_act {activation!r} is not supported, only 'silu'")
    if config.dtype not in _DTYPES:
        raise ValueError(f"dtype {config.dtype} is not supported; known are {', '.join(map(str, _DTYPES))}")


def _layer_windows(architecture: str, parsed: Any) -> tuple[int | None, ...]:
    """Mistral slides in every layer; Qwen only in those that `layer_types` (or `max_window_layers`) names."""
    window: int | None = getattr(parsed, "sliding_window", None)
    num_layers: int = parsed.num_hidden_layers
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    if architecture == "LlamaForCausalLM":
        return (None,) * num_layers
    unknown = set(parsed.layer_types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(f"layer_types holds {min(unknown)!r}; known are 'full_attention' and 'sliding_attention'")
    return tuple(window if kind == "sliding_attention" else None for kind in parsed.layer_types)


def _eos_ids(stated: dict[Path, dict[str, Any]], vocab_size: int) -> tuple[int, ...]:
    """The union of the end-of-sequence ids that the files state (never transformers' defaults), in order."""
    ids: dict[int, None] = {}
    for file, content in stated.items():
        value = content.get("eos_token_id")
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise ModelError(f"{file}: eos_token_id {token!r} is not a token id below {vocab_size}")
            ids[token] = None
    return tuple(ids)
