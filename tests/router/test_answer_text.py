"""Text, log-probabilities and the end of an answer stay in step."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Reference

from penstock.protocol import TokenLogprob
from penstock.router.answer_text import AnswerText, Delta
from penstock.router.detokenizer import Vocabulary
from penstock.router.tokenizer import Tokenizer

END = 2


@pytest.fixture(scope="module")
def vocabulary(model_folder: Path) -> Vocabulary:
    return Vocabulary(Tokenizer(model_folder))


def run(answer: AnswerText, ids: list[int], *, logprobs: bool = False, reason: str = "stop") -> list[Delta]:
    """One token at a time, then the end."""
    deltas = []
    for position, token in enumerate(ids):
        deltas.append(answer.push([token], [TokenLogprob(-position)] if logprobs else ()))
        if answer.stopped:
            return deltas
    return [*deltas, answer.finish(reason)]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_end_tokens_have_no_text_but_count(vocabulary: Vocabulary, tokenizer: Reference) -> None:
    ordinary = tokenizer.encode("water").ids[-1]
    answer = AnswerText(vocabulary, end_ids=frozenset([END, ordinary]))
    ids = [*tokenizer.encode("The ").ids, ordinary]
    deltas = run(answer, ids)
    assert text_of(deltas) == "The "
    assert deltas[-1].finish_reason == "stop"
    assert answer.num_tokens == len(ids)


def test_a_character_cut_by_the_limit_ends_in_one_replacement(vocabulary: Vocabulary, tokenizer: Reference) -> None:
    ids = tokenizer.encode("𠀀").ids
    assert len(ids) == 4
    deltas = run(AnswerText(vocabulary, end_ids=frozenset()), ids[:3], reason="length")
    assert [delta.text for delta in deltas] == ["", "", "", "\ufffd"]
    assert deltas[-1].finish_reason == "length"


def test_every_token_is_logged_once_and_with_its_text(vocabulary: Vocabulary, tokenizer: Reference) -> None:
    ids = tokenizer.encode("Grüße 你好 from 𠀀 the stops").ids
    for stops in ([], ["stopped"], ["sto"], ["你"]):
        answer = AnswerText(vocabulary, end_ids=frozenset([END]), stops=stops)
        deltas = run(answer, [*ids, END], logprobs=True)
        logged = [entry.token_id for delta in deltas for entry in delta.logged]
        text = text_of(deltas)
        assert logged == ids[: len(logged)]
        assert tokenizer.decode(logged).startswith(text)
        assert not tokenizer.decode(logged[:-1]).startswith(text + "\ufffd"), "no token after the cut"
        if not answer.stopped:
            assert logged == ids
        sent = 0
        for delta in deltas:
            sent += len(delta.text)
            assert all(entry.start <= sent for entry in delta.logged)


def test_a_stop_string_does_not_count_before_min_tokens(vocabulary: Vocabulary, tokenizer: Reference) -> None:
    ids = [tokenizer.encode("a").ids[0]] * 6
    answer = AnswerText(vocabulary, end_ids=frozenset(), stops=["aa"], min_tokens=3)
    assert text_of(run(answer, ids)) == "aa", "the one that ends with the fourth token counts, where it begins does not"
    assert answer.num_tokens == 4


def test_a_stop_string_completed_by_the_very_end_is_found(vocabulary: Vocabulary, tokenizer: Reference) -> None:
    ids = tokenizer.encode("𠀀").ids
    answer = AnswerText(vocabulary, end_ids=frozenset(), stops=["\ufffd"])
    deltas = run(answer, ids[:2], reason="length")
    assert text_of(deltas) == ""
    assert deltas[-1].finish_reason == "stop"
