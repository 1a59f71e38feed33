"""Clock, links, view and outcomes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.simulator.clock import Clock
from penstock.simulator.links import Port, transfer
from penstock.simulator.outcome import Objectives, Outcome, summarize
from penstock.simulator.trace import BLOCK_TOKENS, TraceRequest
from penstock.simulator.view import CacheView


def test_the_clock_does_things_in_order_of_time_then_of_asking() -> None:
    clock, done = Clock(), []
    clock.at(2, lambda: done.append(("late", clock.now_s)))
    clock.at(1, lambda: done.append(("first", clock.now_s)))
    clock.at(1, lambda: clock.at(0, lambda: done.append(("past", clock.now_s))))
    clock.at(1, lambda: done.append(("second", clock.now_s)))
    clock.at(1, lambda: done.append(("never", clock.now_s))).cancel()
    clock.run()
    assert done == [("first", 1), ("second", 1), ("past", 1), ("late", 2)]


def test_transfers_take_turns_at_both_ends() -> None:
    clock, ended = Clock(), {}
    a, b, c, d = (Port(bytes_s=100.0, latency_s=0.5) for _ in range(4))

    def move(name: str, source: Port, target: Port, size: int) -> None:
        transfer(clock, source, target, size, lambda: ended.__setitem__(name, clock.now_s))

    move("a to b", a, b, 100)
    move("a to c", a, c, 100)  # after the first: a sends one at a time
    move("d to b", d, b, 200)  # after the first: b receives one at a time
    move("b to a", b, a, 100)  # the other direction is free
    clock.run()
    assert ended == {"a to b": 1.5, "a to c": 2.5, "d to b": 3.5, "b to a": 1.5}


_Change = tuple[bool, str, list[bytes]]


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from("abc"), st.lists(st.sampled_from([b"0", b"1", b"2", b"3"]))),
        max_size=12,
    )
)
def test_the_view_matches_as_a_walk_over_each_worker_s_own_set_does(changes: list[_Change]) -> None:
    view, truth = CacheView("abc"), {url: set[bytes]() for url in "abc"}
    for is_stored, url, hashes in changes:
        if is_stored:
            view.stored(url, hashes)
            truth[url] |= set(hashes)
        else:
            view.removed(url, hashes)
            truth[url] -= set(hashes)
    prompt = [b"0", b"1", b"2", b"3"]
    expected = {}
    for url, held in truth.items():
        blocks = next((number for number, block in enumerate(prompt) if block not in held), len(prompt))
        if blocks:
            expected[url] = blocks * BLOCK_TOKENS
    assert view.match(prompt) == expected
    view.forget("a")
    assert view.match(prompt) == {url: tokens for url, tokens in expected.items() if url != "a"}


def outcome(arrival_s: float, ttft_s: float | None, end_s: float | None, output: int = 11) -> Outcome:
    first = None if ttft_s is None else arrival_s + ttft_s
    return Outcome(TraceRequest(0, arrival_s, 1000, output), first, end_s, cached_tokens=250)


def test_a_summary_counts_what_keeps_both_objectives() -> None:
    outcomes = [
        outcome(0, 1.0, 2.0),  # 0.1 s per token
        outcome(5, 3.0, 9.0),  # too late
        outcome(10, 1.0, 16.0),  # 0.5 s per token: too slow, and not over while requests arrived
        outcome(10, 1.0, 11.0, output=1),
        outcome(10, None, None),
    ]
    summary = summarize(outcomes, Objectives(ttft_s=2.0, tpot_s=0.2))
    assert summary.offered_per_s == 0.5
    assert summary.completed_per_s == 0.2
    assert summary.goodput_per_s == 0.2
    assert summary.ttft_p50_s == 1.0
    assert summary.ttft_p90_s == float("inf")
    assert summary.tpot_s == pytest.approx((1 + 1 + 5) / 30)
    assert summary.cached_share == 0.25
    assert summary.failed == 1
