"""Weights arrive whole and once; a folder that is not sound is refused with the file and the reason."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock.engine.model import (
    Decoder,
    kv_bytes_per_token,
    load_config,
    load_model,
    require_tokenizer,
    weight_bytes,
    weights_version,
)
from penstock.engine.model.weights import checkpoint_places
from penstock.errors import ModelError
from tests.engine.model.tiny import CASES, save

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint in one file."""
    save(CASES["qwen3"], tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A sound checkpoint in several shards."""
    save(CASES["qwen3"], tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def assert_same_weights(decoder: Decoder, other: Decoder) -> None:
    for ours, theirs in zip(decoder.tensors(), other.tensors(), strict=True):
        assert torch.equal(ours, theirs)


# Sound folders.


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
    block = torch.empty(1, config.num_kv_heads, config.num_layers, 2, 16, config.head_dim, dtype=torch.bfloat16)
    assert kv_bytes_per_token(config, torch.bfloat16) * 16 == block.nbytes


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


# Broken folders.


def refused(folder: Path, *expected: str) -> None:
    """Loading fails with a ModelError that says all of `expected`, and so does the fingerprint unless it succeeds."""
    with pytest.raises(ModelError) as error:
        load_model(folder)
    for part in expected:
        assert part in str(error.value)


@pytest.mark.parametrize("kept", [0, 7, 8, 500, 0.5, 0.999999])
def test_a_truncated_file_is_refused(folder: Path, kept: float) -> None:
    file = folder / WEIGHTS
    content = file.read_bytes()
    file.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    refused(folder, str(file), "corrupt or truncated")
    with pytest.raises(ModelError, match="corrupt or truncated"):
        weights_version(folder)


def test_a_truncated_shard_is_refused_before_anything_is_copied(sharded: Path) -> None:
    last = max(sharded.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1])
    refused(sharded, str(last), "corrupt or truncated")


def header_of(content: bytes) -> tuple[dict[str, dict[str, object]], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (lambda content: b"\xff" * 8 + content[8:], "no safetensors header"),
        (lambda content: content[:8] + b"[" + content[9:], "not valid JSON"),
        (lambda content: content + b"\x00", "its header describes"),
        (lambda _: with_header([1, 2], b""), "describes no tensors"),
        (lambda _: with_header({"a": {"dtype": "F32"}}, b""), "describes no tensors"),
        (lambda content: b"PK\x03\x04" + content, "corrupt"),
    ],
    ids=["header length", "header text", "trailing bytes", "header is a list", "no offsets", "another format"],
)
def test_a_corrupt_header_is_refused(folder: Path, corrupt: Callable[[bytes], bytes], reason: str) -> None:
    file = folder / WEIGHTS
    file.write_bytes(corrupt(file.read_bytes()))
    refused(folder, str(file), reason)


@pytest.mark.parametrize("change", [{"dtype": "F33"}, {"shape": [7]}, {"data_offsets": [0, 4]}], ids=str)
def test_a_header_that_contradicts_itself_is_refused(folder: Path, change: dict[str, object]) -> None:
    file = folder / WEIGHTS
    header, data = header_of(file.read_bytes())
    header["model.layers.1.self_attn.q_norm.weight"] |= change
    file.write_bytes(with_header(header, data))
    refused(folder, str(file), "corrupt")


def test_no_flipped_byte_escapes_as_another_error(folder: Path) -> None:
    """Flips in the header: refused, or harmless (white space, metadata), never a crash of another kind."""
    file = folder / WEIGHTS
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    chance = random.Random(0)
    num_refused = 0
    for _ in range(60):
        broken = bytearray(content)
        broken[chance.randrange(8 + length)] ^= 1 << chance.randrange(8)
        file.write_bytes(broken)
        try:
            load_model(folder)
        except ModelError as error:
            num_refused += 1
            assert str(folder) in str(error)  # noqa: PT017 (some flips do no harm)
    assert num_refused > 50


def test_a_missing_shard_is_refused(sharded: Path) -> None:
    lost = max(sharded.glob("*.safetensors"))
    lost.unlink()
    refused(sharded, str(lost), "is missing")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("{}", "has no object 'weight_map'"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "not a file name"),
        ('{"weight_map": {"a": 3}}', "not a file name"),
    ],
)
def test_a_broken_index_is_refused(sharded: Path, content: str, reason: str) -> None:
    (sharded / INDEX).write_text(content)
    refused(sharded, str(sharded / INDEX), reason)


def test_an_index_that_names_the_wrong_shard_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.layers.0.mlp.up_proj.weight"]
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, "lacks the tensor 'model.norm.weight'", INDEX)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    refused(folder, str(folder), WEIGHTS, INDEX)


def test_an_unreadable_file_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    refused(folder, str(folder / WEIGHTS), "cannot be read")


def test_missing_tensors_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    refused(folder, str(folder), "lack 1 tensors", "model.layers.2.mlp.up_proj.weight")


def test_unexpected_tensors_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(96)}))
    refused(folder, str(folder / WEIGHTS), "no place for", "q_proj.bias")


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.zeros(1, 96), "torch.float32 [1, 96]"),
        (torch.zeros(96, 64), "torch.float32 [96, 64]"),
        (torch.zeros(64, 96, dtype=torch.int8), "torch.int8 [64, 96]"),
    ],
    ids=["broadcastable", "transposed", "integers"],
)
def test_tensors_of_another_shape_or_kind_are_refused(folder: Path, tensor: Tensor, found: str) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.mlp.down_proj.weight": tensor}))
    refused(folder, str(folder / WEIGHTS), "mlp.down_proj.weight", found, "[64, 96]")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "is missing"), ("{", "not valid JSON"), ("{}", "is no tokenizer"), ("[]", "list where an object")],
)
def test_a_missing_or_broken_tokenizer_is_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ModelError, match=reason) as error:
        require_tokenizer(tmp_path)
    assert str(file) in str(error.value)


def test_a_sound_tokenizer_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    assert require_tokenizer(tmp_path) == tmp_path / "tokenizer.json"


# The fingerprint.


def test_copies_have_one_version(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("copy") / "elsewhere"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    assert weights_version(copy) == weights_version(folder)


def test_the_split_into_shards_is_no_other_version(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    single = tmp_path_factory.mktemp("single")
    save(CASES["qwen3"], single)
    assert weights_version(sharded) == weights_version(single)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["model.layers.2.input_layernorm.weight"][40].add_(1e-3),
        lambda tensors: tensors["model.layers.1.self_attn.v_proj.weight"].mul_(1 + 1e-6),
        lambda tensors: tensors.update({key: value.bfloat16() for key, value in tensors.items()}),
        lambda tensors: tensors["model.embed_tokens.weight"].copy_(tensors["model.embed_tokens.weight"].flip(0)),
    ],
    ids=["one value of a norm", "one matrix, slightly", "another dtype", "rows in another order"],
)
def test_other_weights_have_another_version(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    before = weights_version(folder)
    rewrite(folder, lambda tensors: tensors)
    assert weights_version(folder) == before
    rewrite(folder, change)
    assert weights_version(folder) != before


def test_a_large_tensor_is_sampled_all_over(folder: Path) -> None:
    """A change throughout any sixteenth of a large tensor shows."""
    values = torch.randn(1600, 256)
    file = folder / WEIGHTS
    seen = set()
    for part in range(16):
        changed = values.clone()
        changed[part * 100 : (part + 1) * 100] += 1e-3
        save_file({"large": changed}, file)
        seen.add(weights_version(folder))
    save_file({"large": values}, file)
    seen.add(weights_version(folder))
    assert len(seen) == 17


def test_another_config_is_another_version(folder: Path) -> None:
    before = weights_version(folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 20_000.0
    (folder / "config.json").write_text(json.dumps(config))
    assert weights_version(folder) != before
