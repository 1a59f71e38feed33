"""The demonstration model in the repository: its size, its shape, its card, and that it can do what the card says."""

import json
from collections.abc import Iterator
from math import comb

import pytest
import torch
from safetensors import safe_open

from penstock.demo import MODEL_FOLDER
from penstock.demo.evaluate import PROBES, REPORTED_ONLY, Candidate, Score, held_out_prompts, read_scores, table

GOAL = 0.9
SAMPLE = 20


@pytest.fixture(scope="module")
def candidate() -> Iterator[Candidate]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield Candidate(MODEL_FOLDER)
    torch.set_num_threads(threads)


def test_the_weights_are_small_bf16_and_named_as_transformers_names_them(candidate: Candidate) -> None:
    path = MODEL_FOLDER / "model.safetensors"
    assert path.stat().st_size <= 12_000_000
    with safe_open(path, framework="pt") as weights:
        names = set(weights.keys())
        assert all(weights.get_slice(name).get_dtype() == "BF16" for name in names)
    assert names == set(candidate.model.state_dict()) - {"lm_head.weight"}  # tied to the embedding


def test_the_shape_is_grouped_query_attention_over_at_least_4096_tokens() -> None:
    config = json.loads((MODEL_FOLDER / "config.json").read_text())
    assert config["max_position_embeddings"] >= 4096
    assert 1 <= config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["architectures"] == ["Qwen3ForCausalLM"]


def test_the_tokenizer_ends_turns_with_a_token_of_its_own_and_keeps_digits_single(candidate: Candidate) -> None:
    generation = json.loads((MODEL_FOLDER / "generation_config.json").read_text())
    tokenizer = candidate.tokenizer
    assert tokenizer.convert_ids_to_tokens(generation["eos_token_id"]) == "<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(generation["pad_token_id"]) == "<|endoftext|>"
    assert tokenizer.tokenize("4721") == ["4", "7", "2", "1"]


def test_any_text_survives_the_tokenizer(candidate: Candidate) -> None:
    text = 'Grüße, 世界! \t{"a": [1, 2]}\n\n  ok'
    assert candidate.tokenizer.decode(candidate.tokenizer(text)["input_ids"]) == text


def test_the_card_states_what_evaluate_measured() -> None:
    assert table(read_scores(MODEL_FOLDER)) in (MODEL_FOLDER / "README.md").read_text()


def test_every_skill_was_measured_on_200_prompts_and_reaches_its_goal() -> None:
    scores = read_scores(MODEL_FOLDER)
    assert set(scores) == set(PROBES)
    assert all(score.asked == 200 for name, score in scores.items() if name != REPORTED_ONLY)
    assert {name for name, score in scores.items() if score.share < GOAL} <= {REPORTED_ONLY}


def likely_at_least(goal: float, asked: int, doubt: float = 1e-3) -> int:
    """The fewest right answers of `asked` that a model right with chance `goal` stays below with chance `doubt`."""
    chances = (comb(asked, right) * goal**right * (1 - goal) ** (asked - right) for right in range(asked + 1))
    below = 0.0
    for right, chance in enumerate(chances):
        if (below := below + chance) > doubt:
            return right
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("probe", [probe for probe in PROBES if probe != REPORTED_ONLY])
def test_a_new_sample_agrees_with_the_card(candidate: Candidate, probe: str) -> None:
    score: Score = candidate.score(held_out_prompts(probe, SAMPLE, seed=1))
    assert score.right >= likely_at_least(min(GOAL, read_scores(MODEL_FOLDER)[probe].share), SAMPLE)
