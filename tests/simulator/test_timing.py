"""Seconds of single requests, computed by hand: a step is 10 ms + 0.1 ms per prompt token + 1 ms per sequence
+ 1 us per token of context; KV moves at 10 us per token; a message takes 1 ms."""

import pytest

from penstock.router.baselines.round_robin import RoundRobin
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest
from penstock.simulator.cluster import Fault, simulate
from penstock.simulator.outcome import Outcome
from tests.simulator.small import spec, trace

HOP = 1e-3


def only(outcomes: tuple[Outcome, ...]) -> Outcome:
    [outcome] = outcomes
    return outcome


def test_alone_on_a_decode_worker() -> None:
    outcome = only(simulate(trace((0, 1000, 3)), spec(0, 1), lambda _: RoundRobin()).outcomes)
    prefill = 0.01 + 1000e-4
    assert outcome.ttft_s == pytest.approx(HOP + prefill + HOP)
    assert outcome.tpot_s == pytest.approx((0.01 + 1e-3 + 1001e-6 + 0.01 + 1e-3 + 1002e-6) / 2)
    assert (outcome.decode, outcome.prefill) == ("d0", None)


def test_a_pair_the_first_token_waits_for_the_prompt_and_the_second_for_the_last_chunk_s_kv() -> None:
    outcome = only(simulate(trace((0, 3000, 2)), spec(1, 1), lambda _: RoundRobin()).outcomes)
    first_chunk, second_chunk = 0.01 + 2048e-4, 0.01 + 952e-4
    assert outcome.ttft_s == pytest.approx(HOP + HOP + first_chunk + second_chunk + HOP + HOP)
    # The first chunk's KV moved while the second was computed.
    transfer, step = 952e-5, 0.01 + 1e-3 + 3001e-6
    assert outcome.decode_s == pytest.approx(transfer + step)


def test_an_answer_of_one_token_moves_no_kv() -> None:
    outcome = only(simulate(trace((0, 1000, 1)), spec(1, 1), lambda _: RoundRobin()).outcomes)
    assert outcome.finish_s == outcome.first_token_s == pytest.approx(4 * HOP + 0.01 + 1000e-4)


def test_a_cached_prefix_is_not_computed_again() -> None:
    run = simulate(trace((0, 2048, 2, "c"), (10, 4096, 2, "c")), spec(1, 1), lambda _: RoundRobin())
    first, second = run.outcomes
    assert (first.cached_tokens, second.cached_tokens) == (0, 2048)
    assert second.predicted_cached_tokens == 2048
    assert second.ttft_s == pytest.approx(4 * HOP + 0.01 + 2048e-4)


def test_prompts_of_one_worker_are_computed_one_after_the_other_within_the_step_s_budget() -> None:
    first, second = simulate(trace((0, 2048, 1), (0, 2048, 1)), spec(1, 1), lambda _: RoundRobin()).outcomes
    assert first.ttft_s == pytest.approx(4 * HOP + 0.2148)
    assert second.ttft_s == pytest.approx(4 * HOP + 2 * 0.2148)


def test_sequences_share_the_steps_of_their_decode_worker() -> None:
    outcomes = simulate(trace((0, 100, 50), (0, 100, 50)), spec(0, 1), lambda _: RoundRobin()).outcomes
    alone = only(simulate(trace((0, 100, 50)), spec(0, 1), lambda _: RoundRobin()).outcomes)
    for outcome in outcomes:
        assert outcome.tpot_s is not None
        assert alone.tpot_s is not None
        assert outcome.tpot_s - alone.tpot_s == pytest.approx(1e-3 + 125e-6, rel=0.01)  # one more row, 125 tokens


class FromD0:
    """Computes on p0 or p1 in turn; p1 first reads what p0 has."""

    def choose(self, request: PlacementRequest, cluster: ClusterSnapshot) -> Placement | None:  # noqa: ARG002
        if "p0" in request.cached_tokens:
            return Placement("d0", "p1", source="p0")
        return Placement("d0", "p0")


def test_cached_kv_of_a_third_worker_is_read_instead_of_computed() -> None:
    _, second = simulate(trace((0, 2048, 2, "c"), (10, 4096, 2, "c")), spec(2, 1), lambda _: FromD0()).outcomes
    assert second.cached_tokens == 2048
    read = HOP + 2048e-5
    assert second.ttft_s == pytest.approx(4 * HOP + read + 0.01 + 2048e-4)


def test_a_source_that_dies_while_it_is_read_gives_nothing() -> None:
    chosen = spec(2, 1, faults=(Fault(10.01, "p0", 60.0),))
    _, second = simulate(trace((0, 2048, 2, "c"), (10, 4096, 2, "c")), chosen, lambda _: FromD0()).outcomes
    assert (second.attempts, second.cached_tokens) == (1, 0)
    read = HOP + 2048e-5
    assert second.ttft_s == pytest.approx(4 * HOP + read + 2 * (0.01 + 2048e-4))
