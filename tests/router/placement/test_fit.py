"""Costs are learned from timings, whatever else comes with them."""

import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from penstock.protocol import StepTiming
from penstock.router.placement.costs import PRIOR_STEP, LinkCost, StepCost
from penstock.router.placement.fit import RatioFit, non_negative_solution
from penstock.router.placement.model import CostModel

SLOW_CPU = StepCost(step_s=4e-3, prefill_token_s=8e-4, prefill_pair_s=2e-8, decode_token_s=1.5e-3, context_token_s=4e-7)


def steps(
    cost: StepCost, count: int, seed: int = 1, *, prompts: float = 0.3, noise: float = 0.05
) -> Iterator[StepTiming]:
    """Timings of a worker that really costs `cost`, in random steps."""
    rng = random.Random(seed)
    for _ in range(count):
        decode = rng.randint(1, 64)
        context = decode * rng.randint(50, 4000)
        prefill = pairs = 0
        if rng.random() < prompts:
            prefill = rng.randint(16, 512)
            pairs = prefill * rng.randint(prefill // 2, 16_000)
        seconds = cost.seconds(prefill, pairs, decode, context) * rng.lognormvariate(0, noise)
        yield StepTiming(prefill, decode, context, seconds, pairs)


def learned(*timings: Iterator[StepTiming]) -> StepCost:
    model = CostModel()
    for each in timings:
        model.stepped("w", "kind", each)
    return model.cost("other worker of this kind", "kind")


def assert_close(found: StepCost, true: StepCost, tolerance: float) -> None:
    for name in StepCost.__struct_fields__:
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=tolerance), name


@pytest.mark.parametrize("true", [PRIOR_STEP, SLOW_CPU], ids=["as the prior", "far from it"])
def test_costs_are_found_in_noise(true: StepCost) -> None:
    assert_close(learned(steps(true, 2000)), true, 0.1)


def test_outliers_hardly_count() -> None:
    rng = random.Random(2)
    spoiled = (
        StepTiming(each.prefill_tokens, each.decode_tokens, each.context_tokens, 50 * each.seconds, each.prefill_pairs)
        if rng.random() < 0.02
        else each
        for each in steps(SLOW_CPU, 3000)
    )
    assert_close(learned(spoiled), SLOW_CPU, 0.15)


def test_long_decoding_does_not_blur_what_prompts_cost() -> None:
    found = learned(steps(SLOW_CPU, 2000), steps(SLOW_CPU, 20_000, prompts=0.0))
    assert found.prefill_token_s == pytest.approx(SLOW_CPU.prefill_token_s, rel=0.1)
    assert found.prefill_pair_s == pytest.approx(SLOW_CPU.prefill_pair_s, rel=0.1)


def test_a_change_of_speed_is_followed() -> None:
    faster = SLOW_CPU.times(0.25)
    found = learned(steps(SLOW_CPU, 4000), steps(faster, 20_000))
    assert_close(found, faster, 0.15)


def test_what_was_never_seen_is_as_slow_as_what_was() -> None:
    """Only decoding was measured, ten times slower than the prior: a prompt is expected to be so too."""
    found = learned(steps(PRIOR_STEP.times(10), 500, prompts=0.0))
    assert found.prefill_token_s == pytest.approx(10 * PRIOR_STEP.prefill_token_s, rel=0.1)


@pytest.mark.parametrize(
    "lie",
    [
        StepTiming(10, 0, 0, math.nan),
        StepTiming(10, 0, 0, math.inf),
        StepTiming(10, 0, 0, -1.0),
        StepTiming(10, 0, 0, 0.0),
        StepTiming(10, 0, 0, 1e7),
        StepTiming(-10, 20, 0, 0.1),
        StepTiming(0, 1, -5, 0.1),
        StepTiming(10, 0, 0, 0.1, -1),
        StepTiming(0, 0, 0, 0.1),
        StepTiming(10**30, 0, 0, 0.1),
    ],
)
def test_what_cannot_be_true_is_refused_and_counted(lie: StepTiming) -> None:
    model = CostModel()
    model.stepped("w", "kind", steps(SLOW_CPU, 500))
    before = model.cost("w", "kind")
    assert model.stepped("w", "kind", [lie] * 100) == 100
    assert model.cost("w", "kind") == before


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**6),
            st.integers(0, 1000),
            st.integers(0, 10**7),
            st.floats(1e-6, 3600),
            st.integers(0, 10**9),
        ),
        max_size=60,
    )
)
def test_costs_are_finite_and_never_negative(counts: list[tuple[int, int, int, float, int]]) -> None:
    found = learned(iter([StepTiming(*each) for each in counts]))
    values = structs.astuple(found)
    assert all(0 <= value < math.inf for value in values)
    assert sum(values) > 0


def test_a_slow_worker_of_a_kind_is_known_as_slow() -> None:
    model = CostModel()
    for round_ in range(40):
        for name in ("a", "b", "c"):
            model.stepped(name, "kind", steps(SLOW_CPU, 20, seed=round_))
        model.stepped("slow", "kind", steps(SLOW_CPU.times(2), 20, seed=round_))
    model.stepped("a", "kind", steps(SLOW_CPU, 20))  # the next refit
    assert model.cost("slow", "kind").prefill_token_s > 1.6 * model.cost("a", "kind").prefill_token_s


def test_a_worker_that_is_nothing_like_its_kind_teaches_it_nothing_however_much_it_reports() -> None:
    model = CostModel()
    honest = ("a", "b", "c")
    for round_ in range(100):
        for number, name in enumerate(honest):
            model.stepped(name, "kind", steps(SLOW_CPU, 10, seed=3 * round_ + number))
        model.stepped("liar", "kind", steps(SLOW_CPU.times(50), 100, seed=round_))
    assert_close(model.cost("a new worker", "kind"), SLOW_CPU, 0.3)
    assert_close(model.cost("a", "kind"), SLOW_CPU, 0.3)
    assert model.refused("liar") > 5000
    assert [model.refused(name) for name in honest] == [0, 0, 0]
    for round_ in range(100):
        for name in ("liar", *honest):
            model.stepped(name, "kind", steps(SLOW_CPU, 10, seed=round_))
    before = model.refused("liar")
    model.stepped("liar", "kind", steps(SLOW_CPU, 10))
    assert model.refused("liar") == before, "once it is like the others it is heard again"


def test_link_costs_are_learned_per_class() -> None:
    rng = random.Random(3)
    true = LinkCost(latency_s=5e-4, token_s=2e-6)
    model = CostModel()
    for _ in range(300):
        tokens, reads = rng.randint(16, 20_000), rng.randint(1, 4)
        seconds = (reads * true.latency_s + tokens * true.token_s) * rng.lognormvariate(0, 0.1)
        model.pulled("node", reads=reads, tokens=tokens, seconds=seconds)
    assert model.links.keys() == {"node"}
    assert model.links["node"].latency_s == pytest.approx(true.latency_s, rel=0.15)
    assert model.links["node"].token_s == pytest.approx(true.token_s, rel=0.15)


def test_a_coefficient_that_would_be_negative_is_zero() -> None:
    """y = x0 - x1 / 2 over x0 in 1..9, x1 = x0: the best non-negative answer leaves x1 out."""
    rows = [(float(x), float(x % 4), x - 0.5 * (x % 4)) for x in range(1, 10)]
    products = [[sum(row[i] * row[j] for row in rows) for j in range(2)] for i in range(2)]
    targets = [sum(row[i] * row[2] for row in rows) for i in range(2)]
    first, second = non_negative_solution(products, targets)
    assert second == 0
    assert first == pytest.approx(sum(row[0] * row[2] for row in rows) / sum(row[0] ** 2 for row in rows))


def test_nothing_seen_is_the_prior() -> None:
    assert RatioFit(3).solve() == (1.0, 1.0, 1.0)
    assert CostModel().cost("w", "kind") == PRIOR_STEP
