"""Sampling draws from the distribution asked for, and depends on nothing but its row."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from penstock.engine.sampler import Sampled, SampleRow, philox, uniform_numbers
from penstock.engine.sampler import sample as sample_rows
from penstock.protocol import SamplingParams

EOS = 2


def row(
    seed: int = 0, position: int = 0, *, prompt: list[int] | None = None, output: list[int] | None = None, **params: Any
) -> SampleRow:
    return SampleRow(SamplingParams(max_tokens=100, **params), seed, position, prompt or [], output or [], (EOS,))


def random_logits(*shape: int, seed: int = 0, std: float = 1.5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std


def sample(logits: Tensor, rows: list[SampleRow]) -> list[Sampled]:
    """Of rows that are all sound."""
    sampled = sample_rows(logits, rows)
    assert None not in sampled
    return [one for one in sampled if one is not None]


def tokens(sampled: list[Sampled]) -> list[int]:
    return [one.token for one in sampled]


# Random numbers.


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's kat_vectors, philox4x32-10
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    def words(text: str) -> Any:
        return tuple(np.array([int(word, 16)], dtype=np.uint64) for word in text.split())

    assert [int(word[0]) for word in philox(words(counter), words(key))] == [int(word, 16) for word in expected.split()]


def test_uniform_numbers_are_uniform_over_seeds_and_over_positions() -> None:
    for numbers in (uniform_numbers(range(20_000), [3] * 20_000), uniform_numbers([2**62] * 20_000, range(20_000))):
        assert numbers.min() >= 0.0
        assert numbers.max() < 1.0
        assert chi_square(np.histogram(numbers, 50, (0, 1))[0], np.full(50, 0.02)) < critical(49)
        assert len(set(numbers.tolist())) == 20_000


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1))
def test_a_uniform_number_depends_on_its_seed_and_position_alone(seed: int, position: int) -> None:
    alone = uniform_numbers([seed], [position])[0]
    assert uniform_numbers([1, seed, 7], [0, position, 9])[1] == alone
    assert uniform_numbers([seed ^ 1], [position])[0] != alone
    assert uniform_numbers([seed], [position + 1])[0] != alone


# Distributions.


def chi_square(counts: Any, probabilities: Any) -> float:
    """Pearson's statistic; infinite when something was drawn that cannot be."""
    counts, expected = np.asarray(counts, float), np.asarray(probabilities, float) * np.sum(counts)
    if counts[expected == 0].any():
        return math.inf
    possible = expected > 0
    return float(((counts - expected)[possible] ** 2 / expected[possible]).sum())


def critical(degrees: int) -> float:
    """The value that a chi-square of `degrees` exceeds once in 10,000 times (Wilson and Hilferty 1931)."""
    return float(degrees * (1 - 2 / (9 * degrees) + 3.719 * math.sqrt(2 / (9 * degrees))) ** 3)


def reference_distribution(logits: Tensor, *, temperature: float, min_p: float, top_k: int, top_p: float) -> Any:
    """What transformers' warpers leave, applied in our documented order."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers(torch.zeros(1, 1, dtype=torch.long), logits[None].double())[0].softmax(-1).numpy()


DISTRIBUTIONS = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.4, "min_p": 0.02, "top_k": 30, "top_p": 0.9},
]


@pytest.mark.parametrize("params", DISTRIBUTIONS, ids=str)
@pytest.mark.parametrize("vary", ["seed", "position"])
def test_tokens_follow_the_distribution_asked_for(params: dict[str, Any], vary: str) -> None:
    num_draws, vocab_size = 10_000, 40
    logits = random_logits(vocab_size)
    rows = [row(**{vary: i}, **params) for i in range(num_draws)]
    drawn = Counter(tokens(sample(logits.expand(num_draws, -1), rows)))
    counts = [drawn[token] for token in range(vocab_size)]
    asked = {"temperature": 1.0, "min_p": 0.0, "top_k": 0, "top_p": 1.0} | params
    expected = reference_distribution(logits, **asked)
    degrees = int((expected > 0).sum()) - 1
    assert chi_square(counts, expected) < critical(degrees)
    # The draws are many enough to tell a temperature that is 15 % off.
    wrong = reference_distribution(logits, **asked | {"temperature": asked["temperature"] * 1.15})
    assert chi_square(counts, wrong) > critical(degrees)


def test_the_tail_of_a_real_vocabulary_is_drawn() -> None:
    """49,152 equal tokens: sums in blocks lose none of them."""
    rows = [row(seed) for seed in range(2_000)]
    drawn = tokens(sample(torch.zeros(1, 49_152).expand(2_000, -1), rows))
    counts = np.histogram(drawn, 48, (0, 49_152))[0]
    assert chi_square(counts, np.full(48, 1 / 48)) < critical(47)
    assert len(set(drawn)) > 1_900


truncations = st.fixed_dictionaries(
    {
        "temperature": st.floats(1e-4, 50),
        "top_k": st.integers(0, 300),
        "top_p": st.floats(1e-9, 1.0),
        "min_p": st.floats(0.0, 1.0),
    }
)


@given(st.integers(1, 300), truncations, st.integers(0, 2**63 - 1))
@settings(max_examples=300)
def test_truncation_never_empties_and_never_passes_a_dropped_token(
    vocab_size: int, params: dict[str, Any], seed: int
) -> None:
    logits = random_logits(1, vocab_size, seed=seed % 1000, std=4.0).round()  # rounded: many ties
    logits[0, seed % vocab_size] = -math.inf
    if vocab_size == 1:
        logits[:] = 0.0
    token = tokens(sample(logits, [row(seed, **params)]))[0]
    better = int((logits[0] > logits[0, token]).sum())
    weights = ((logits[0] - logits.max()).double() / params["temperature"]).exp()
    assert logits[0, token] > -math.inf
    assert better < (params["top_k"] or vocab_size)
    assert weights[token] >= params["min_p"] * (1 - 1e-6)
    if not params["top_k"] and not params["min_p"]:
        assert weights[logits[0] > logits[0, token]].sum() <= params["top_p"] * weights.sum() * (1 + 1e-6)


@pytest.mark.parametrize("params", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-7}], ids=str)
def test_the_tightest_truncation_is_greedy(params: dict[str, Any]) -> None:
    logits = random_logits(20, 211)
    rows = [row(seed, **params) for seed in range(20)]
    assert tokens(sample(logits, rows)) == logits.argmax(-1).tolist()


def test_among_equally_likely_tokens_the_lowest_ids_stay() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]).expand(500, -1)
    assert set(tokens(sample(logits, [row(seed, top_k=2) for seed in range(500)]))) == {1, 2}
    assert set(tokens(sample(logits, [row(seed, top_p=0.6) for seed in range(500)]))) == {1, 2, 3}
    assert set(tokens(sample(logits, [row(seed, temperature=0.0) for seed in range(500)]))) == {1}


# Purity.


@pytest.mark.parametrize("vocab_size", [211, 1023, 5000])
def test_a_row_is_bitwise_the_same_whatever_its_batch(vocab_size: int) -> None:
    """Odd vocabulary sizes: rows of one batch start at every alignment."""
    settings_of_rows: list[dict[str, Any]] = [
        {**params, "logprobs": 3, "repetition_penalty": penalty, "min_tokens": minimum}
        for params in [*DISTRIBUTIONS, {"temperature": 0.0}]
        for penalty in (1.0, 1.3)
        for minimum in (0, 50)
    ]
    logits = random_logits(len(settings_of_rows), vocab_size)
    rows = [
        row(seed, seed * 3, prompt=[1, 2, 3], output=[5, 9, 9], **params)
        for seed, params in enumerate(settings_of_rows)
    ]
    together = sample(logits, rows)
    assert [sample(logits[i : i + 1].clone(), [rows[i]])[0] for i in range(len(rows))] == together
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    assert sample(logits[order], [rows[i] for i in order]) == [together[i] for i in order]
    assert sample(logits[7:], rows[7:]) == together[7:]


def test_greedy_and_drawn_rows_share_a_batch() -> None:
    logits = random_logits(6, 211)
    mixed = [row(seed, temperature=float(seed % 2)) for seed in range(6)]
    assert sample(logits[:0], []) == []
    assert tokens(sample(logits, mixed)) == [
        int(logits[i].argmax()) if i % 2 == 0 else sample(logits[i : i + 1], [mixed[i]])[0].token for i in range(6)
    ]


def test_neither_logits_nor_history_are_changed() -> None:
    logits = random_logits(1, 64)
    before, prompt, output = logits.clone(), [1, 2], [3, 3]
    sample(
        logits, [row(prompt=prompt, output=output, top_p=0.5, logit_bias={4: 2.0}, frequency_penalty=1.0, logprobs=2)]
    )
    assert torch.equal(logits, before)
    assert (prompt, output) == ([1, 2], [3, 3])


def test_broken_logits_give_no_token_and_leave_the_other_rows_alone() -> None:
    logits = random_logits(3, 64)
    sound = sample(logits, [row(temperature=0.0)] * 3)
    logits[1, 5] = math.nan
    assert sample_rows(logits, [row(temperature=0.0)] * 3) == [sound[0], None, sound[2]]


# Adjustments.

histories = st.lists(st.integers(0, 49), max_size=60)


@given(
    histories,
    histories,
    st.floats(0.3, 3.0),
    st.floats(-2.0, 2.0),
    st.floats(-2.0, 2.0),
    st.dictionaries(st.integers(0, 49), st.floats(-3.0, 3.0), max_size=8),
)
@settings(max_examples=300)
def test_penalties_and_bias_follow_their_formulas(
    prompt: list[int], output: list[int], repetition: float, frequency: float, presence: float, bias: dict[int, float]
) -> None:
    logits = random_logits(1, 50, seed=len(prompt) * 61 + len(output))
    expected = logits.double()
    for token, value in bias.items():
        expected[0, token] += value
    if prompt or output:
        penalty = RepetitionPenaltyLogitsProcessor(repetition)
        expected = penalty(torch.tensor([prompt + output]), expected)
    for token in set(output):  # OpenAI, "Frequency and presence penalties"
        expected[0, token] -= output.count(token) * frequency + presence
    params = {
        "repetition_penalty": repetition,
        "frequency_penalty": frequency,
        "presence_penalty": presence,
        "logit_bias": bias,
    }
    chosen = sample(logits, [row(prompt=prompt, output=output, temperature=0.0, **params)])[0].token
    assert expected[0, chosen] >= expected.max() - 1e-6


def test_penalties_count_the_prompt_only_for_repetition() -> None:
    logits = torch.tensor([[2.0, 1.9, -5.0]])

    def choice(**params: Any) -> int:
        return sample(logits, [row(prompt=[0], temperature=0.0, **params)])[0].token

    assert choice(repetition_penalty=1.2) == 1
    assert choice(frequency_penalty=2.0, presence_penalty=2.0) == 0


def test_end_tokens_are_masked_until_min_tokens() -> None:
    logits = torch.zeros(1, 8)
    logits[0, EOS], logits[0, 5], logits[0, 3] = 9.0, 8.0, 1.0

    def choice(num_output: int, **params: Any) -> int:
        history = [1] * num_output
        return sample(logits, [row(output=history, temperature=0.0, min_tokens=3, **params)])[0].token

    assert choice(0) == 5
    assert choice(2, stop_token_ids=(5,)) == 3
    assert choice(2, stop_token_ids=(5,), ignore_eos=True) == EOS
    assert choice(3, stop_token_ids=(5,)) == EOS


def test_bias_forces_and_forbids() -> None:
    logits = random_logits(200, 50)
    forced = [row(seed, logit_bias={7: 100.0}) for seed in range(200)]
    assert set(tokens(sample(logits, forced))) == {7}
    forbidden = [row(seed, logit_bias=dict.fromkeys(range(49), -100.0)) for seed in range(200)]
    assert set(tokens(sample(logits, forbidden))) == {49}


@pytest.mark.parametrize(
    "params",
    [
        {"min_tokens": 5, "stop_token_ids": tuple(range(50))},
        {"logit_bias": dict.fromkeys(range(50), -math.inf)},
        {"logit_bias": {3: 1e308}, "repetition_penalty": 1e-300},
        {"logit_bias": {50: 1.0, 10**6: 100.0}},
    ],
    ids=["every token masked", "every token forbidden", "overflow", "ids past the vocabulary"],
)
def test_an_impossible_request_disturbs_nobody(params: dict[str, Any]) -> None:
    logits = random_logits(2, 50)
    impossible, normal = sample(logits, [row(prompt=[3], temperature=0.0, **params), row(temperature=0.0)])
    assert impossible.token == int(logits[0].argmax())
    assert normal.token == int(logits[1].argmax())


# Log-probabilities.


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    logits = random_logits(6, 211, std=3.0)
    expected = logits.double().log_softmax(-1)
    params = {"temperature": 2.0, "top_k": 50, "repetition_penalty": 1.5, "logit_bias": {4: 3.0}, "logprobs": 5}
    for i, sampled in enumerate(sample(logits, [row(seed, prompt=[1, 2], **params) for seed in range(6)])):
        assert sampled.logprob is not None
        assert sampled.logprob.logprob == pytest.approx(float(expected[i, sampled.token]), abs=1e-5)
        best = expected[i].topk(5)
        assert [token for token, _ in sampled.logprob.top] == best.indices.tolist()
        assert [value for _, value in sampled.logprob.top] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize(("asked", "reported"), [(None, None), (0, 0), (3, 3), (99, 8)])
def test_as_many_logprobs_as_asked(asked: int | None, reported: int | None) -> None:
    logprob = sample(random_logits(1, 8), [row(logprobs=asked)])[0].logprob
    assert (None if logprob is None else len(logprob.top)) == reported
