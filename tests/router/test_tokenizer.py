"""Ten thousand texts, over four families, become the same tokens as with transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Reference
from transformers import AutoTokenizer

from penstock.errors import ModelError, RequestError
from penstock.router.model import load_model
from penstock.router.tokenizer import Tokenizer
from tests.router.model_folders import byte_fallback_bpe, byte_level_bpe, unigram, word_piece, write_folder
from tests.router.texts import random_texts

FAMILIES: dict[str, tuple[Callable[[], Reference], str, dict[str, Any]]] = {
    "byte-level BPE": (byte_level_bpe, "<|im_end|>", {"additional_special_tokens": ["<|im_start|>", "<tool_call>"]}),
    "BPE with byte fallback": (byte_fallback_bpe, "</s>", {"bos_token": "<s>", "unk_token": "<unk>"}),
    "unigram with metaspace": (unigram, "</s>", {"pad_token": "<pad>", "extra_special_tokens": ["<extra>"]}),
    "word piece": (word_piece, "[SEP]", {"cls_token": "[CLS]", "mask_token": "[MASK]"}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_become_the_tokens_of_transformers(tmp_path: Path, family: str) -> None:
    build, eos, config = FAMILIES[family]
    folder = write_folder(tmp_path, build(), eos=eos, **config)
    reference, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    special = [str(token) for token in reference.added_tokens_decoder.values()]
    texts = list(random_texts(2_500, special, seed=len(family)))
    assert len(set(texts)) > 2_000
    for add_special_tokens in (True, False):
        expected = reference(texts, add_special_tokens=add_special_tokens)["input_ids"]
        for text, ids in zip(texts, expected, strict=True):
            assert ours.encode(text, add_special_tokens=add_special_tokens) == ids, repr(text)
    assert ours.special_ids == frozenset(reference.all_special_ids) | {
        id_ for id_, token in reference.added_tokens_decoder.items() if token.special
    }


def test_truncation_and_padding_of_the_file_are_not_ours(tmp_path: Path) -> None:
    tokenizer = byte_level_bpe()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    ours = Tokenizer(write_folder(tmp_path, tokenizer, eos="<|im_end|>"))
    for text in ("the", "The penstock carries water to the turbines, and the turbines turn. 12345"):
        assert ours.encode(text, add_special_tokens=True) == byte_level_bpe().encode(text).ids


def test_tokens_only_the_config_knows_are_added(tmp_path: Path) -> None:
    added = {
        "700": {"content": "<|late|>", "special": True, "lstrip": False, "rstrip": True, "normalized": False},
        "701": {"content": "<plain>", "special": False, "normalized": True},
    }
    folder = write_folder(tmp_path, byte_level_bpe(), eos="<|im_end|>", added_tokens_decoder=added)
    reference, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    for text in ("a<|late|>  b", "a <plain> b", "<|im_end|><|late|>"):
        assert ours.encode(text, add_special_tokens=True) == reference(text)["input_ids"]


def test_half_a_surrogate_pair_is_the_requests_fault(tmp_path: Path) -> None:
    ours = Tokenizer(write_folder(tmp_path, byte_level_bpe(), eos="<|im_end|>"))
    with pytest.raises(RequestError, match="surrogate"):
        ours.encode("\ud800", add_special_tokens=True)


def test_a_folder_that_cannot_be_served_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(tmp_path)
    folder = write_folder(tmp_path / "good", byte_level_bpe(), eos="<|im_end|>")
    assert load_model(folder).context_tokens == 512
    assert load_model(folder, name="other", context_tokens=64).context_tokens == 64
    for file, content, reason in (
        ("tokenizer.json", "{", r"tokenizer\.json is not a tokenizer"),
        ("tokenizer_config.json", "[]", "holds list where an object belongs"),
        ("config.json", "{", r"config\.json is not JSON"),
        ("config.json", '{"vocab_size": 10}', "max_position_embeddings"),
        ("config.json", '{"max_position_embeddings": 10}', "vocab_size"),
    ):
        good = (folder / file).read_text("utf-8")
        (folder / file).write_text(content, "utf-8")
        with pytest.raises(ModelError, match=reason):
            load_model(folder)
        (folder / file).write_text(good, "utf-8")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        load_model(folder)


def test_the_ends_of_an_answer_are_those_of_both_configs(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level_bpe(), eos="<|im_end|>")
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}', "utf-8")
    assert load_model(folder).end_ids == {0, 2}
