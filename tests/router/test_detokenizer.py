"""Text as it streams is the text at the end, and never half a character."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference
from tokenizers import decoders

from penstock.errors import ModelError
from penstock.router.detokenizer import Detokenizer, Vocabulary, decode
from penstock.router.tokenizer import Tokenizer
from tests.router.model_folders import byte_fallback_bpe, byte_level_bpe, unigram, word_piece, write_folder
from tests.router.texts import random_texts

BUILDERS: dict[str, tuple[Callable[[], Reference], str]] = {
    "byte-level BPE": (byte_level_bpe, "<|im_end|>"),
    "BPE with byte fallback": (byte_fallback_bpe, "</s>"),
    "unigram with metaspace": (unigram, "</s>"),
}


@pytest.fixture(scope="module", params=BUILDERS)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Reference, Vocabulary]:
    build, eos = BUILDERS[request.param]
    folder = write_folder(tmp_path_factory.mktemp("family"), build(), eos=eos)
    return request.param, Reference.from_file(str(folder / "tokenizer.json")), Vocabulary(Tokenizer(folder))


def deltas(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(vocabulary)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


def test_deltas_of_texts_add_up_to_decode(family: tuple[str, Reference, Vocabulary]) -> None:
    _, reference, vocabulary = family
    for text in random_texts(1_000, ["<|im_end|>", "</s>", "<s>"], seed=5):
        ids = reference.encode(text).ids
        parts = deltas(vocabulary, ids)
        expected = reference.decode(ids)
        assert "".join(parts) == expected
        for end in range(1, len(parts)):
            assert expected.startswith("".join(parts[:end])), "what was streamed stands"


@given(data=st.data())
@settings(max_examples=200)
def test_any_tokens_stream_to_their_decode(data: st.DataObject, family: tuple[str, Reference, Vocabulary]) -> None:
    name, reference, vocabulary = family
    ids = data.draw(st.lists(st.integers(0, reference.get_vocab_size() + 10), max_size=30))
    expected = reference.decode(ids)
    if name == "BPE with byte fallback" and "\ufffd" in expected:
        return  # an invalid run of bytes, which tokenizers gives up as a whole: tested below
    assert decode(vocabulary, ids) == expected


def byte_ids(reference: Reference, raw: bytes) -> list[int]:
    return [reference.token_to_id(f"<0x{byte:02X}>") for byte in raw]


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Vocabulary]:
    folder = write_folder(tmp_path_factory.mktemp("fallback"), byte_fallback_bpe(), eos="</s>")
    return Reference.from_file(str(folder / "tokenizer.json")), Vocabulary(Tokenizer(folder))


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        ("你".encode(), ["", "", "你", ""]),
        ("👩".encode(), ["", "", "", "👩", ""]),
        (b"\xe4\xbd", ["", "", "\ufffd\ufffd"]),
        ("你".encode() + b"\xff", ["", "", "你", "\ufffd", ""]),
        (b"\xe4A", ["", "\ufffdA", ""]),
        (b"\xc3\xc3\xa9", ["", "\ufffd", "é", ""]),
    ],
)
def test_a_character_comes_with_its_last_byte(
    fallback: tuple[Reference, Vocabulary], raw: bytes, parts: list[str]
) -> None:
    reference, vocabulary = fallback
    assert deltas(vocabulary, byte_ids(reference, raw)) == parts


def test_a_word_after_half_a_character_ends_it(fallback: tuple[Reference, Vocabulary]) -> None:
    reference, vocabulary = fallback
    word = reference.encode("water").ids[-1]
    text = reference.decode([word])
    ids = [*byte_ids(reference, b"\xe4\xbd"), word, *byte_ids(reference, b"\xc3\xa9")]
    assert deltas(vocabulary, ids) == ["", "", f"\ufffd\ufffd{text}", "", "é", ""]
    assert decode(vocabulary, ids) == reference.decode(ids)


@pytest.mark.parametrize("text", ["  two spaces", " ", "   ", "\n x", "a", ""])
def test_leading_spaces_are_kept_as_decode_keeps_them(fallback: tuple[Reference, Vocabulary], text: str) -> None:
    reference, vocabulary = fallback
    ids = reference.encode(text).ids
    assert decode(vocabulary, ids) == reference.decode(ids)


def test_no_replacement_character_for_a_character_that_completes(family: tuple[str, Reference, Vocabulary]) -> None:
    _, reference, vocabulary = family
    for text in ("naïve 你好 👩‍🚀 한국어 🇩🇪", "ȷǟḁ", "𠀀𠀁"):
        ids = reference.encode(text).ids
        if "\ufffd" not in reference.decode(ids):
            assert not any("\ufffd" in part for part in deltas(vocabulary, ids))


def test_special_tokens_have_no_text_and_break_no_character(family: tuple[str, Reference, Vocabulary]) -> None:
    _, reference, vocabulary = family
    special = min(vocabulary.tokenizer.special_ids)
    ids = reference.encode("你好 é", add_special_tokens=False).ids
    mixed = [token for pair in zip(ids, [special] * len(ids), strict=True) for token in pair]
    assert decode(vocabulary, mixed) == decode(vocabulary, ids) == reference.decode(mixed)


def test_a_token_costs_the_same_however_long_the_answer(family: tuple[str, Reference, Vocabulary]) -> None:
    """Nothing is kept of what was emitted: the state after 100,000 tokens is as small as after one."""
    _, reference, vocabulary = family
    ids = reference.encode("The penstock carries water 你好").ids
    detokenizer = Detokenizer(vocabulary)
    for token_id in ids * 5_000:
        detokenizer.push(token_id)
    pending, _ = detokenizer._decoder.getstate()
    assert len(pending) < 4


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Sequence([decoders.Replace("_", " "), decoders.ByteFallback(), decoders.Fuse()]),
        decoders.Sequence([decoders.ByteLevel()]),
        decoders.Metaspace(prepend_scheme="never"),
    ],
)
def test_variants_of_the_known_decoders_are_read(tmp_path: Path, decoder: decoders.Decoder) -> None:
    reference = byte_level_bpe()
    reference.decoder = decoder
    vocabulary = Vocabulary(Tokenizer(write_folder(tmp_path, reference, eos="<|im_end|>")))
    for text in random_texts(200, ["<|im_end|>"], seed=9):
        ids = reference.encode(text).ids
        assert decode(vocabulary, ids) == reference.decode(ids)


@pytest.mark.parametrize(
    "decoder", [None, decoders.CTC(), decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")])]
)
def test_a_decoder_that_cannot_be_streamed_is_refused_at_start(
    tmp_path: Path, decoder: decoders.Decoder | None
) -> None:
    reference = word_piece()
    reference.decoder = decoder  # type: ignore[assignment]
    with pytest.raises(ModelError, match="decoder"):
        Vocabulary(Tokenizer(write_folder(tmp_path, reference, eos="[SEP]")))
