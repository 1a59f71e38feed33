"""Weights arrive whole and once, in the dtype asked for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock.engine.kv.layout import KVLayout
from penstock.engine.model import Decoder, load_config, load_model, weight_bytes
from penstock.engine.model.weights import checkpoint_places
from tests.engine.model.tiny import CASES, WEIGHTS, rewrite, save


def assert_same_weights(decoder: Decoder, other: Decoder) -> None:
    for ours, theirs in zip(decoder.tensors(), other.tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_every_tensor_of_the_file_is_in_its_place(folder: Path) -> None:
    places = checkpoint_places(load_model(folder))
    tensors = load_file(folder / WEIGHTS)
    assert places.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(places[name], tensor), name


def test_shards_make_the_same_model_as_one_file(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    single = tmp_path_factory.mktemp("single")
    save(CASES["qwen3"], single)
    assert_same_weights(load_model(sharded), load_model(single))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_converted_on_the_way(folder: Path, dtype: torch.dtype) -> None:
    converted, saved = load_model(folder, dtype), load_model(folder)
    assert (converted.dtype, saved.dtype) == (dtype, torch.float32)
    assert torch.equal(converted.layers[1].qkv, saved.layers[1].qkv.to(dtype))
    assert converted.cos_sin.dtype == torch.float32


def test_a_checkpoint_is_loaded_in_its_own_dtype(tmp_path: Path) -> None:
    CASES["qwen3"].build().bfloat16().save_pretrained(tmp_path)
    assert load_model(tmp_path).embedding.dtype == torch.bfloat16


def test_tied_embeddings_are_one_tensor_even_if_the_file_holds_both(tmp_path: Path) -> None:
    save(CASES["qwen3-tied"], tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(211, 64)}))
    decoder = load_model(tmp_path)
    assert decoder.lm_head is decoder.embedding
    assert decoder.embedding.any()


def test_rotary_buffers_of_old_exports_are_ignored(folder: Path) -> None:
    before = load_model(folder)
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(12)}))
    assert_same_weights(load_model(folder), before)


def test_the_bar_shows_when_asked_and_is_silent_without_a_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_model(folder)
    assert capsys.readouterr().err == ""
    load_model(folder, progress=True)
    assert "weights" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["llama-biases", "qwen2-tied", "qwen3"])
def test_the_arithmetic_is_what_is_allocated(name: str, tmp_path: Path) -> None:
    save(CASES[name], tmp_path)
    decoder, config = load_model(tmp_path, max_context_tokens=100), load_config(tmp_path)
    assert decoder.cos_sin.shape == (100, config.head_dim)
    assert weight_bytes(config, max_context_tokens=100) == sum(tensor.nbytes for tensor in decoder.tensors())
    decoder.pack()
    assert weight_bytes(config, max_context_tokens=100, packed=True) == sum(each.nbytes for each in decoder.tensors())
    block = torch.empty(1, config.num_kv_heads, config.num_layers, 2, 16, config.head_dim, dtype=torch.bfloat16)
    layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, 16, torch.bfloat16)
    assert layout.token_bytes * 16 == layout.block_bytes == block.nbytes
    assert layout.allocate(1, torch.device("cpu")).shape == block.shape


LOAD_AND_MEASURE = """
import sys
from pathlib import Path
import torch
from penstock.engine.model import load_model
def mib(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
load_model(sys.argv[1])  # imports, allocator and page cache are warm; this one is freed
before = mib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
decoder = load_model(sys.argv[2])
print(mib("VmHWM") - before, sum(tensor.nbytes for tensor in decoder.tensors()) / 2**20)
"""


def test_peak_memory_is_the_weights_and_little_more(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    big = tmp_path_factory.mktemp("big")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 1024, "intermediate_size": 4096, "head_dim": 64}
    (big / "config.json").write_text(json.dumps(config))
    decoder = Decoder(load_config(big), torch.float32, torch.device("cpu"))
    save_file({name: place.fill_(0.5).clone() for name, place in checkpoint_places(decoder).items()}, big / WEIGHTS)
    del decoder
    command = [sys.executable, "-c", LOAD_AND_MEASURE, str(folder), str(big)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    shutil.rmtree(big)
    grown, weights = map(float, output.split())
    assert weights > 150
    assert grown < weights + 100  # a mapped window of 64 MiB, the tensor that overruns it and the allocator
