"""Waiting in the router, as in its gate."""

from functools import partial

import pytest

from penstock.router.flow.gate import MOST_SEEN, POLL_S
from penstock.router.flow.turns import Busy, Turn
from penstock.router.placement.guarded import Guarded
from penstock.simulator.clock import Clock
from penstock.simulator.cluster import simulate
from penstock.simulator.line import Line
from tests.simulator.small import spec, trace

PROMPT_S = 0.2148


def test_a_worker_is_given_little_ahead_and_never_runs_dry() -> None:
    requests = trace(*((0.0, 2048, 1) for _ in range(4)))
    at_once = simulate(requests, spec(0, 1), Guarded).outcomes
    waiting = simulate(requests, spec(0, 1, ahead_s=0.05), Guarded).outcomes
    assert [outcome.placed_s for outcome in at_once] == [0.0] * 4
    placed = [outcome.placed_s for outcome in waiting]
    assert placed[0] == 0.0
    for number in (1, 2):
        due = number * PROMPT_S
        assert due - 0.05 - POLL_S < placed[number] < due + 0.005  # type: ignore[operator]
    assert placed[3] > 2 * PROMPT_S - POLL_S, "the last in line may go a little earlier"  # type: ignore[operator]
    for early, late in zip(at_once, waiting, strict=True):
        assert late.first_token_s == pytest.approx(early.first_token_s, abs=1e-3)


def test_one_that_waits_for_its_best_worker_holds_nobody_up() -> None:
    clock, gone = Clock(), {}
    line = Line(clock, lambda _: True)

    def first(turn: Turn) -> Busy | None:
        if turn.waited_s < 1.0:
            return Busy(could_go=True)
        gone["first"] = clock.now_s
        return None

    def second(turn: Turn) -> Busy | None:
        if not turn.in_line:
            return Busy()
        gone["second"] = clock.now_s
        return None

    clock.at(0.5, lambda: line.enter(first))
    clock.at(0.6, lambda: line.enter(second))
    clock.at(5.0, lambda: None)
    clock.run()
    assert gone == {"second": 0.6, "first": pytest.approx(1.5, abs=2 * POLL_S)}
    assert len(line) == 0


def test_as_many_are_looked_at_as_in_the_gate() -> None:
    looked_at: set[int] = set()
    has_room = False
    line = Line(Clock(), lambda _: has_room)

    def attempt(number: int, _: Turn) -> Busy:
        looked_at.add(number)
        return Busy(could_go=True)

    for number in range(2 * MOST_SEEN + 1):
        line.enter(partial(attempt, number))
    looked_at.clear()
    has_room = True
    line.changed()
    assert looked_at == set(range(MOST_SEEN))


def test_waiting_for_what_never_comes_ends_with_all_else() -> None:
    clock = Clock()
    lines = [Line(clock, lambda _: True) for _ in range(2)]
    for line in lines:
        line.enter(lambda _: Busy())
    clock.at(3.0, lambda: None)
    clock.run()
    assert clock.now_s == 3.0
    assert [len(line) for line in lines] == [1, 1]
