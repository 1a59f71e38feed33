"""From a configuration to an engine that can run: model, memory plan, block hashes, self-check."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from penstock.engine.config import EngineConfig
from penstock.engine.engine import Engine
from penstock.engine.kv.layout import KVLayout, plan_blocks
from penstock.engine.messages import Limits
from penstock.engine.model import load_config, load_model, require_tokenizer, weight_bytes, weights_version
from penstock.engine.runner import Runner
from penstock.engine.self_check import check_exactness
from penstock.errors import ConfigError
from penstock.fingerprint import model_fingerprint
from penstock.hashing import BlockHasher
from penstock.machine import free_memory_bytes, usable_cores
from penstock.protocol import VERSION, Layout

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SLOWEST_FLOPS_PER_S = {"cpu": 2e10, "cuda": 1e13}
"""A deliberately slow machine, for predicting the first step before any was measured."""


@dataclass(frozen=True, slots=True)
class Built:
    """An engine and what others must know of it."""

    engine: Engine
    layout: Layout
    limits: Limits
    notes: tuple[str, ...]
    first_guess_s_per_row: float


def build_engine(config: EngineConfig, generation: str) -> Built:
    """Loads the model and allocates the KV cache. Raises ConfigError with what is wrong and what to change."""
    folder = Path(config.model)
    device = _device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(config.threads or usable_cores())
    model = load_config(folder)
    require_tokenizer(folder)
    dtype = _DTYPES.get(config.dtype, model.dtype)
    kv = KVLayout(model.num_layers, model.num_kv_heads, model.head_dim, config.block_size, dtype)
    most_tokens = (config.num_blocks or config.kv_bytes // kv.block_bytes) * config.block_size
    longest = min(config.max_context_tokens or model.max_context_tokens, most_tokens)
    num_weight_bytes = weight_bytes(model, dtype, max(1, longest), packed=device.type == "cpu")
    num_blocks = plan_blocks(
        kv,
        kv_bytes=config.kv_bytes,
        num_blocks=config.num_blocks,
        weight_bytes=num_weight_bytes,
        free_bytes=_free_bytes(device),
        copies=device.type == "cpu" and model.has_full_attention,
    )
    context, notes = _context(config, model.max_context_tokens, num_blocks * config.block_size)
    decoder = load_model(folder, dtype, device, config=model, max_context_tokens=context)
    decoder.pack()
    runner = Runner(decoder, kv, num_blocks)
    notes.append(check_exactness(runner))
    version = weights_version(folder)
    layout = Layout(
        protocol=VERSION,
        model=model.architecture,
        weights_version=version,
        kv_dtype=str(dtype).removeprefix("torch."),
        groups=((kv.num_layers, kv.num_kv_heads, kv.head_dim),),
        block_size=config.block_size,
        hash_key=BlockHasher(config.secret.encode(), "fingerprint").root.hex()[:8],
    )
    root = json.dumps([version, layout.kv_dtype])
    return Built(
        engine=Engine(config, runner, lambda salt: BlockHasher(config.secret.encode(), root, salt), generation),
        layout=layout,
        limits=Limits(
            vocab_size=model.vocab_size,
            max_context_tokens=context,
            block_size=config.block_size,
            num_blocks=num_blocks,
            kind=_kind(device, layout.kv_dtype),
            model=model_fingerprint(folder),
        ),
        notes=tuple(notes),
        first_guess_s_per_row=2 * num_weight_bytes / dtype.itemsize / _SLOWEST_FLOPS_PER_S[device.type],
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but torch finds no CUDA device; use --device cpu or install a CUDA build")
    return torch.device(name)


def _kind(device: torch.device, dtype: str) -> str:
    """Workers of one kind take as long for the same work."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {dtype}"
    return f"cpu, {torch.get_num_threads()} threads, {dtype}"


def _free_bytes(device: torch.device) -> int:
    """Memory that can be allocated without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory_bytes()


def _context(config: EngineConfig, model_tokens: int, pool_tokens: int) -> tuple[int, list[str]]:
    """The longest sequence served, and a note where memory makes it shorter than the model's own."""
    asked = config.max_context_tokens
    if asked > model_tokens:
        raise ConfigError(f"--max-context-tokens {asked} is more than the model's {model_tokens}")
    if asked > pool_tokens:
        raise ConfigError(
            f"--max-context-tokens {asked} does not fit the KV cache of {pool_tokens} tokens; raise --kv-bytes"
        )
    context = min(asked or model_tokens, pool_tokens)
    if context < (asked or model_tokens):
        return context, [f"context limited to {context} of {model_tokens} tokens by the KV cache; raise --kv-bytes"]
    return context, []
