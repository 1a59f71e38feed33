"""Fingerprints tell models apart, and not two ways to store one model."""

import json
from pathlib import Path

import msgspec
import pytest

from penstock.fingerprint import layout_fingerprint, model_fingerprint
from penstock.protocol import Layout
from tests.router.model_folders import byte_level_bpe, unigram, write_folder


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, byte_level_bpe(), eos="<|im_end|>")


def test_the_same_model_stored_otherwise_is_the_same(folder: Path) -> None:
    before = model_fingerprint(folder)
    change_config(folder, torch_dtype="float16", quantization_config={"bits": 4}, transformers_version="1")
    assert model_fingerprint(folder) == before


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"vocab_size": 7}, {"model_type": "llama"}])
def test_another_architecture_is_another_model(folder: Path, changes: dict[str, object]) -> None:
    before = model_fingerprint(folder)
    change_config(folder, **changes)
    assert model_fingerprint(folder) != before


def test_another_tokenizer_is_another_model(folder: Path) -> None:
    before = model_fingerprint(folder)
    unigram().save(str(folder / "tokenizer.json"))
    assert model_fingerprint(folder) != before


def test_layouts_differ_in_every_field() -> None:
    layout = Layout(protocol=1, model="m", weights_version="1", kv_dtype="bfloat16", groups=((1, 1, 8),), block_size=16)
    others = [
        {"protocol": 2},
        {"weights_version": "2"},
        {"kv_dtype": "float32"},
        {"block_size": 32},
        {"hash_key": "other"},
    ]
    told = {layout_fingerprint(msgspec.structs.replace(layout, **other)) for other in ({}, *others)}
    assert len(told) == 6
