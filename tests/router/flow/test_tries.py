"""Who is tried again, told the time: no event loop, no workers."""

from penstock.router.flow.tries import Round, Tried, Tries
from penstock.router.flow.turns import Busy, Turn


def everywhere(_: Turn) -> bool:
    return True


def turn_of(look: Round, tried: Tried) -> Turn | None:
    return look.turn(tried, Turn(), 600)


def try_all(tries: Tries, waiting: list[Tried], now: float, busy: Busy, took_s: float = 0.0) -> list[Tried]:
    """Those that were tried in one round, all in vain."""
    found, look = [], Round(tries, now)
    for tried in waiting:
        if turn_of(look, tried) is not None:
            found.append(tried)
            look.in_vain(tried, busy, took_s)
    look.end()
    return found


def test_without_room_for_its_kind_nobody_is_tried() -> None:
    tries, waiting = Tries(lambda turn: not turn.in_line), Tried(0)
    look = Round(tries, 1.0)
    assert look.turn(waiting, Turn(in_line=True), 600) is None
    assert turn_of(look, waiting) == Turn(queued_s=1, remaining_s=600)


def test_the_first_that_fits_nowhere_keeps_its_worker_from_others() -> None:
    tries, first, other = Tries(everywhere), Tried(0), Tried(0)
    assert try_all(tries, [first, other], 0, Busy(waits_for="d1")) == [first, other]
    look = Round(tries, 5.0)
    turns = [turn_of(look, each) for each in (first, other, Tried(5.0))]
    assert [turn.kept if turn else None for turn in turns] == ["", "d1", "d1"]
    tries.gone(first)
    turn = turn_of(Round(tries, 5.0), other)
    assert turn is not None
    assert turn.kept == ""


def test_a_kept_worker_is_lent_at_first_where_there_is_no_other() -> None:
    tries, first = Tries(lambda turn: turn.kept == ""), Tried(0)
    try_all(tries, [first], 0, Busy(waits_for="d1"))
    assert tries.kept_from(Turn(kept="d1"), 9.0) == ""
    assert tries.kept_from(Turn(kept="d1"), 11.0) is None
    assert tries.kept_from(Turn(), 11.0) == "", "the first itself"


def test_no_worker_is_kept_for_one_that_others_have_come_before() -> None:
    tries, first, other = Tries(everywhere), Tried(0), Tried(0)
    try_all(tries, [first], 0, Busy(waits_for="d1"))
    try_all(tries, [other], 1, Busy(could_go=True))
    assert tries.kept == ""


def test_those_that_fit_nowhere_rest_and_those_behind_them_have_their_turn() -> None:
    tries = Tries(everywhere)
    large, small = [Tried(0) for _ in range(20)], [Tried(0) for _ in range(3)]
    assert try_all(tries, [*large, *small], 0, Busy(waits_for="d1")) == [*large, *small], "everybody is tried once"
    assert try_all(tries, [*large, *small], 1, Busy(waits_for="d1")) == large[:1]
    assert try_all(tries, [*large, *small], 2, Busy(waits_for="d1")) == large[:8]
    assert try_all(tries, [*large, *small], 3, Busy(waits_for="d1")) == [large[0], *large[8:15]]
    assert try_all(tries, [*large, *small], 3.1, Busy(waits_for="d1")) == [large[0], *large[15:], *small[:2]]


def test_one_that_could_go_elsewhere_is_tried_at_every_look() -> None:
    """Its best worker may have room at any time."""
    tries, waiting = Tries(everywhere), [Tried(0)]
    for tick in range(5):
        assert try_all(tries, waiting, 1 + tick / 20, Busy(could_go=True)) == waiting
    turn = turn_of(Round(tries, 4.0), waiting[0])
    assert turn is not None
    assert turn.waited_s == 3.0, "since it could first have gone"


def test_trying_again_takes_a_tenth_of_the_time_at_most() -> None:
    tries, waiting = Tries(everywhere), [Tried(0) for _ in range(8)]
    try_all(tries, waiting, 0, Busy(could_go=True), took_s=0.002)
    assert try_all(tries, waiting, 1.00, Busy(could_go=True), took_s=0.002) == waiting
    assert try_all(tries, waiting, 1.15, Busy(could_go=True), took_s=0.002) == []
    newcomer = Tried(1.15)
    assert try_all(tries, [*waiting, newcomer], 1.15, Busy(could_go=True)) == [newcomer]
    assert try_all(tries, waiting, 1.17, Busy(could_go=True)) == waiting
