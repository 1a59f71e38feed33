"""Fills a decoder from safetensors: each tensor is copied once, from the mapped file into its place.

Knows the checkpoint's tensor names. No state dict is ever held: peak memory is the parameters plus one window of
mapped pages.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from penstock.engine.model.config import ModelConfig, load_config
from penstock.engine.model.decoder import Decoder
from penstock.engine.model.folder import weight_files
from penstock.errors import ModelError
from penstock.kernels.linear import GatedWeight

_REOPEN_BYTES = 64 * 2**20
"""A file is mapped anew after this many bytes: pages read through a mapping count as resident until it is closed.
Measured: 384 MiB read through one mapping add 384 MiB of resident memory, and reopening costs under 1 ms."""
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def load_model(
    path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    config: ModelConfig | None = None,
    max_context_tokens: int | None = None,
    progress: bool | None = None,
) -> Decoder:
    """The decoder of the model folder `path`, in `dtype` (None: as saved) on `device`.

    `config` is the folder's, where it was read before. `progress` shows a bar; None shows it on a terminal only.
    Raises ModelError, naming the file and the reason, for a config the decoder cannot serve and for weights that are
    corrupt, missing, unexpected or of the wrong shape.
    """
    folder = Path(path)
    config = config or load_config(folder)
    decoder = Decoder(config, dtype or config.dtype, torch.device(device), max_context_tokens)
    places = checkpoint_places(decoder)
    files = weight_files(folder)
    _check_names(folder, files, places, tied=config.tied_embeddings)
    with torch.inference_mode():
        for file, name, tensor in iterate_weights(files, progress):
            place = places.get(name)
            if place is None:
                continue  # a buffer or a tied copy, see _check_names
            if tensor.shape != place.shape or tensor.dtype not in _DTYPES:
                found, wanted = f"{tensor.dtype} {list(tensor.shape)}", f"floating point {list(place.shape)}"
                raise ModelError(f"{file}: the tensor {name!r} is {found}; the config asks for {wanted}")
            place.copy_(tensor)
    return decoder


def iterate_weights(files: dict[Path, list[str]], progress: bool | None = None) -> Iterator[tuple[Path, str, Tensor]]:
    """Yields (file, name, tensor) for the tensors listed; a tensor is a view of the mapped file: drop it soon.

    Raises ModelError for a file that safetensors refuses.
    """
    total = sum(file.stat().st_size for file in files)
    # tqdm itself decides by the terminal when `disable` is None.
    disable = None if progress is None else not progress
    with tqdm(total=total, desc="weights", unit="B", unit_scale=True, disable=disable, leave=False) as bar:
        for file, names in files.items():
            mapped_bytes = 0
            source: Any = None
            for name in names:
                try:
                    if source is None or mapped_bytes > _REOPEN_BYTES:
                        source, mapped_bytes = safe_open(file, framework="pt"), 0
                    tensor = source.get_tensor(name)
                except (SafetensorError, OSError) as error:
                    raise ModelError(f"{file} is corrupt: {error}") from error
                num_bytes = tensor.nbytes
                yield file, name, tensor
                del tensor
                mapped_bytes += num_bytes
                bar.update(num_bytes)


def checkpoint_places(decoder: Decoder) -> dict[str, Tensor]:
    """Per tensor name of the checkpoint, the (part of a) parameter it fills."""
    config = decoder.config
    head_dim, half = config.head_dim, config.intermediate_size
    query_rows, kv_rows = config.num_heads * head_dim, config.num_kv_heads * head_dim
    places: dict[str, Tensor | None] = {
        "model.embed_tokens.weight": decoder.embedding,
        "model.norm.weight": decoder.final_norm,
        "lm_head.weight": None if config.tied_embeddings else decoder.lm_head,
    }
    for index, layer in enumerate(decoder.layers):
        prefix = f"model.layers.{index}."
        places |= {
            prefix + "input_layernorm.weight": layer.input_norm,
            prefix + "post_attention_layernorm.weight": layer.post_attention_norm,
            prefix + "self_attn.q_norm.weight": layer.q_norm,
            prefix + "self_attn.k_norm.weight": layer.k_norm,
            prefix + "self_attn.o_proj.weight": layer.output,
            prefix + "self_attn.o_proj.bias": layer.output_bias,
            prefix + "mlp.down_proj.weight": layer.down,
            prefix + "mlp.down_proj.bias": layer.down_bias,
        }
        assert not isinstance(layer.gate_up, GatedWeight)
        for kind, qkv, gate_up in (
            ("weight", layer.qkv, layer.gate_up),
            ("bias", layer.qkv_bias, layer.gate_up_bias),
        ):
            if qkv is not None:
                q, k, v = qkv.split_with_sizes((query_rows, kv_rows, kv_rows))
                places[f"{prefix}self_attn.q_proj.{kind}"] = q
                places[f"{prefix}self_attn.k_proj.{kind}"] = k
                places[f"{prefix}self_attn.v_proj.{kind}"] = v
            if gate_up is not None:
                places[f"{prefix}mlp.gate_proj.{kind}"] = gate_up[:half]
                places[f"{prefix}mlp.up_proj.{kind}"] = gate_up[half:]
    return {name: place for name, place in places.items() if place is not None}


def _check_names(folder: Path, files: dict[Path, list[str]], places: dict[str, Tensor], *, tied: bool) -> None:
    """Refuses, before anything is copied, a checkpoint whose tensors are not the decoder's."""
    present = {name: file for file, names in files.items() for name in names}
    missing = sorted(places.keys() - present.keys())
    if missing:
        raise ModelError(
            f"{folder}: the weights lack {len(missing)} tensors that the config asks for: {_some(missing)}"
        )
    unexpected = sorted(name for name in present.keys() - places.keys() if not _is_redundant(name, tied=tied))
    if unexpected:
        raise ModelError(
            f"{present[unexpected[0]]} holds {len(unexpected)} tensors that the config has no place for: "
            f"{_some(unexpected)}"
        )


def _is_redundant(name: str, *, tied: bool) -> bool:
    """Tensors that old exports carry along: rotary buffers, and the head beside the embedding it is tied to."""
    return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
