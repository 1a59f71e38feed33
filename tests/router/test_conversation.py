"""Conversations tokenized piece by piece give the tokens of the whole, whatever the tokenizer."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Inner

from penstock.errors import RequestError
from penstock.router.conversation import TurnTokenizer, safe_marks
from penstock.router.tokenizer import Tokenizer
from tests.router.model_folders import byte_fallback_bpe, byte_level_bpe, unigram, word_piece, write_folder
from tests.router.texts import random_texts

MANY_BYTES = 2**20


def metaspace_first() -> Inner:
    """Only the text's first word gets a mark in front: pieces must know that they are not the first."""
    tokenizer = unigram()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def prefix_space() -> Inner:
    tokenizer = byte_level_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def odd_normalizer() -> Inner:
    """Strips, lowers and rewrites what stands at the ends of a text."""
    tokenizer = byte_level_bpe()
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Strip(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("^[a-z]"), "X"),
            normalizers.Replace(Regex("im_"), ""),
            normalizers.NFKD(),
        ]
    )
    return tokenizer


def greedy_neighbours() -> Inner:
    """Added tokens that eat spaces, look at their neighbours, overlap each other or are normalized first."""
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("word", single_word=True, normalized=False),
            AddedToken("xx<|", normalized=False),
            AddedToken("<|im_end|>!", normalized=False),
            AddedToken("<Normal>", normalized=True),
        ]
    )
    return tokenizer


FAMILIES: dict[str, tuple[Callable[[], Inner], str, list[str]]] = {
    "byte-level BPE": (byte_level_bpe, "<|im_end|>", ["<|im_start|>", "<|im_end|>"]),
    "BPE with byte fallback": (byte_fallback_bpe, "</s>", ["<s>", "</s>"]),
    "unigram with metaspace": (unigram, "</s>", ["<s>", "</s>"]),
    "metaspace in front of the first": (metaspace_first, "</s>", ["<s>", "</s>"]),
    "word piece": (word_piece, "[SEP]", ["[SEP]"]),
    "prefix space": (prefix_space, "<|im_end|>", ["<|im_start|>", "<|im_end|>"]),
    "odd normalizer": (odd_normalizer, "<|im_end|>", ["<|im_start|>", "<|im_end|>"]),
    "greedy neighbours": (greedy_neighbours, "<|im_start|>", ["<right>"]),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        family: Tokenizer(write_folder(folder / str(number), build(), eos=eos))
        for number, (family, (build, eos, _)) in enumerate(FAMILIES.items())
    }


def encode(turns: TurnTokenizer, text: str, salt: str = "") -> list[int]:
    pieces = turns.split(text)
    found = turns.recall(pieces, salt)
    missing = [piece for piece, ids in zip(pieces, found, strict=True) if ids is None]
    return turns.join(pieces, salt, found, turns.tokenize(missing))


def contents(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.added_tokens]


@pytest.mark.parametrize("family", FAMILIES)
def test_many_conversations_become_the_tokens_of_the_whole(tokenizers: dict[str, Tokenizer], family: str) -> None:
    tokenizer = tokenizers[family]
    turns = TurnTokenizer(tokenizer, contents(tokenizer), MANY_BYTES)
    assert turns.split(f"a{FAMILIES[family][2][0]}b") != [f"a{FAMILIES[family][2][0]}b"], "it does cut"
    draw = random.Random(family)
    texts = list(random_texts(1_500, contents(tokenizer), seed=len(family)))
    for _ in range(1_500):
        count = draw.randrange(1, 8)
        text = "".join(draw.choice(texts) + draw.choice(["", " ", "\n", *contents(tokenizer)]) for _ in range(count))
        assert encode(turns, text) == tokenizer.encode(text, add_special_tokens=False), repr(text)


FRAGMENTS = [
    *("<|im_start|>", "<|im_end|>", "<|im_end|>!", "<|endoftext|>", "xx<|", "<left>", "<right>", "word", "<Normal>"),
    *("</s>", "<s>", "<unk>", "[SEP]", "<|", "|>", "<", "im_", "<|im_st", "art|>", "s>", "[SE", "P]"),
    *(
        " ",
        "  ",
        "\n",
        "\u3000",
        "\u00a0",
        "\t",
        "a",
        "Ab",
        "x",
        "X",
        "▁",
        "é",
        "e\u0301",
        "\u0301",
        "ﬁ",
        "👩‍🚀",
        "1",
        "!",
    ),
]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=24))
def test_whatever_stands_beside_a_mark(tokenizers: dict[str, Tokenizer], family: str, fragments: list[str]) -> None:
    tokenizer, text = tokenizers[family], "".join(fragments)
    turns = TurnTokenizer(tokenizer, contents(tokenizer), MANY_BYTES)
    assert "".join(turns.split(text)) == text
    for _ in range(2):
        assert encode(turns, text) == tokenizer.encode(text, add_special_tokens=False)


def test_only_what_is_new_is_tokenized(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level BPE"]
    turns = TurnTokenizer(tokenizer, ["<|im_start|>", "<|im_end|>"], MANY_BYTES)
    first = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    encode(turns, first)
    second = turns.split(first + "Hi<|im_end|>\n<|im_start|>user\nAgain<|im_end|>\n<|im_start|>assistant\n")
    missing = [piece for piece, ids in zip(second, turns.recall(second, ""), strict=True) if ids is None]
    assert missing == ["<|im_start|>assistant\nHi", "<|im_start|>user\nAgain"]


def test_one_tenants_texts_are_not_remembered_for_another(tokenizers: dict[str, Tokenizer]) -> None:
    turns = TurnTokenizer(tokenizers["byte-level BPE"], ["<|im_end|>"], MANY_BYTES)
    text = "a secret<|im_end|>"
    encode(turns, text, salt="one")
    assert None not in turns.recall(turns.split(text), "one")
    assert turns.recall(turns.split(text), "two") == [None, None]


def test_memory_is_bounded_and_right_without_any(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level BPE"]
    for max_bytes in (0, 1000, 5000):
        turns = TurnTokenizer(tokenizer, ["<|im_end|>"], max_bytes)
        for number in range(50):
            text = "<|im_end|>".join(str(number + index) for index in range(20))
            assert encode(turns, text) == tokenizer.encode(text, add_special_tokens=False)
            assert turns._num_bytes <= max_bytes
            assert (turns._num_bytes == 0) == (not turns._ids)


def test_marks_that_depend_on_what_stands_beside_them_are_not_cut_at(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["greedy neighbours"]
    everything = contents(tokenizer)
    safe = safe_marks(everything, tokenizer.added_tokens)
    assert "<right>" in safe
    assert "<|endoftext|>" not in safe, "xx<| may reach into it"
    assert not {"<left>", "word", "xx<|", "<Normal>", "<|im_end|>", "<|im_start|>"} & set(safe)


def test_a_tokenizer_with_dropout_is_left_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level_bpe(), eos="<|im_end|>")
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(state))
    turns = TurnTokenizer(Tokenizer(folder), ["<|im_end|>"], MANY_BYTES)
    assert turns.split("a<|im_end|>b") == ["a<|im_end|>b"]
    assert isinstance(models.BPE(dropout=0.5).dropout, float)


def test_half_a_surrogate_pair_is_the_requests_fault(tokenizers: dict[str, Tokenizer]) -> None:
    turns = TurnTokenizer(tokenizers["byte-level BPE"], ["<|im_end|>"], MANY_BYTES)
    with pytest.raises(RequestError, match="surrogate"):
        encode(turns, "fine<|im_end|>\ud800")
