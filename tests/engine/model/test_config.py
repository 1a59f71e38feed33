"""A config is understood as transformers understands it, or refused with the file and the reason."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.engine.model import load_config
from penstock.errors import ModelError

BASE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "head_dim": 24,
    "vocab_size": 211,
    "rms_norm_eps": 1e-5,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 8}


def family(name: str) -> dict[str, Any]:
    return {"architectures": [f"{name}ForCausalLM"], "model_type": name.lower()}


def write(folder: Path, changes: dict[str, Any], generation: Any = None) -> Path:
    """A folder whose config.json is BASE with `changes`; a change to None removes the key."""
    content = {key: value for key, value in (BASE | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_shape_and_rules_are_read(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, {"torch_dtype": "bfloat16", "tie_word_embeddings": True}))
    assert (config.hidden_size, config.intermediate_size, config.num_layers, config.vocab_size) == (64, 96, 4, 211)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 24)
    assert (config.qk_norm, config.qkv_bias, config.output_bias, config.mlp_bias) == (True, False, False, False)
    assert (config.tied_embeddings, config.dtype, config.rms_norm_eps) == (True, torch.bfloat16, 1e-5)
    assert config.max_context_tokens == 256


def test_head_dim_follows_from_the_heads_when_it_is_not_stated(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, {**family("Qwen2"), "head_dim": None})).head_dim == 16


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 8}, (None, None, None, None)),
        ({**WINDOW, "max_window_layers": 3}, (None, None, None, 8)),
        ({**WINDOW, "max_window_layers": 4}, (None, None, None, None)),
        ({**WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}, (8, None, 8, None)),
        ({**family("Qwen2"), **WINDOW, "max_window_layers": 1}, (None, 8, 8, 8)),
        ({**family("Mistral"), "sliding_window": 8}, (8, 8, 8, 8)),
        ({**family("Llama"), "sliding_window": 8}, (None, None, None, None)),
    ],
)
def test_the_window_of_each_layer(tmp_path: Path, changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert load_config(write(tmp_path, changes)).layer_windows == windows


def test_mistral_without_a_window_attends_to_all(tmp_path: Path) -> None:
    content = BASE | family("Mistral") | {"sliding_window": None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_config(tmp_path).layer_windows == (None,) * 4


@pytest.mark.parametrize(
    ("stated", "generation", "expected"),
    [
        (None, None, ()),
        (7, None, (7,)),
        ([7, 8], {"eos_token_id": [8, 9]}, (7, 8, 9)),
        (None, {"eos_token_id": 3}, (3,)),
    ],
)
def test_eos_ids_are_those_of_both_files(
    tmp_path: Path, stated: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    changes = {**family("Llama"), "eos_token_id": stated}
    assert load_config(write(tmp_path, changes, generation)).eos_ids == expected


def test_an_impossible_eos_id_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id 211 is not a token id below 211"):
        load_config(write(tmp_path, {}, {"eos_token_id": [5, 211]}))


@pytest.mark.parametrize(
    ("stretch", "context"),
    [
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"type": "linear", "factor": 4.0}, 256),
    ],
)
def test_the_context_is_what_the_checkpoint_serves(tmp_path: Path, stretch: dict[str, Any], context: int) -> None:
    assert load_config(write(tmp_path, {"rope_scaling": stretch})).max_context_tokens == context


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "not supported; known are Llama.*, Mistral.*, Qwen2.*, Qwen3"),
        ({"architectures": None, "model_type": "mamba"}, "model_type 'mamba'.* known are Llama"),
        ({"architectures": "Qwen3ForCausalLM"}, "not supported; known are"),
        ({"model_type": "llama"}, "model_type 'llama' contradicts Qwen3ForCausalLM"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
        ({"hidden_size": "64"}, "hidden_size.*expected int"),
        ({"num_hidden_layers": 0}, "num_layers must be positive, not 0"),
        ({**family("Llama"), "head_dim": None, "num_attention_heads": 0}, "zero"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"head_dim": 5}, "even rotary dimension"),
        ({"head_dim": 3}, "head_dim 3 is odd"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps must be a positive number"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"dtype": "int8"}, "int8 is not supported"),
        ({"dtype": "nonsense"}, "nonsense"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({**WINDOW, "sliding_window": 0, "max_window_layers": 2}, "sliding_window must be positive"),
        ({**WINDOW, "layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention"] * 3 + ["linear_attention"]}, "linear_attention"),
        ({"eos_token_id": 211}, "eos_token_id 211 is not a token id below 211"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized weights are not supported"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:60],
)
def test_a_wrong_config_is_refused_with_file_and_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as error:
        load_config(write(tmp_path, changes))
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b'{"hidden_size": 64,', "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1, 2]", "JSON list where an object"),
        (b"[" * 100_000, "not valid JSON"),
    ],
    ids=["empty", "cut", "not utf-8", "list", "nested"],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_broken_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    file = write(tmp_path, {}) / name
    file.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as error:
        load_config(tmp_path)
    assert str(file) in str(error.value)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_config(tmp_path)


def test_a_process_that_serves_does_not_keep_transformers(tmp_path: Path) -> None:
    """It would cost 185 MB of each worker. Errors come through from the child that reads the config."""
    write(tmp_path, family("Llama"))
    program = """
import sys
from penstock.engine.model import load_config
from penstock.errors import ModelError
print(load_config(sys.argv[1]).architecture)
try:
    load_config(sys.argv[1] + "/nowhere")
except ModelError as error:
    print(error)
assert not [name for name in sys.modules if name.startswith("transformers")]
"""
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    architecture, error = result.stdout.splitlines()
    assert architecture == "LlamaForCausalLM"
    assert "nowhere/config.json is missing" in error
