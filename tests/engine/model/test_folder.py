"""A folder that is not sound is refused with the file and the reason; a sound one has a fingerprint of its content."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from penstock.engine.model import load_model, require_tokenizer, weights_version
from penstock.errors import ModelError
from tests.engine.model.tiny import CASES, WEIGHTS, rewrite, save

INDEX = "model.safetensors.index.json"


def refused(folder: Path, *expected: str) -> None:
    """Loading fails with a ModelError that says all of `expected`."""
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
