"""Who was told when to come back is expected then, and only then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.router.flow.advice import LONGEST_WAIT_S
from penstock.router.flow.promises import Promises


def test_a_promise_is_kept_once_and_on_time() -> None:
    promises = Promises()
    assert promises.make(b"a", 10, wait_s=5, now_s=100) == 5
    assert not promises.redeem(b"b", 105), "another request"
    assert not promises.redeem(b"a", 104.9), "too early"
    assert promises.redeem(b"a", 104.96), "clients' clocks are not ours"
    assert not promises.redeem(b"a", 105), "once"
    assert promises.amount(105) == 0


def test_who_comes_too_early_is_told_the_same_time_again() -> None:
    promises = Promises()
    promises.make(b"a", 10, wait_s=5, now_s=100)
    assert promises.make(b"a", 10, wait_s=9, now_s=102) == 3
    assert promises.amount(102) == 10, "booked once"
    assert promises.redeem(b"a", 105)


def test_each_of_many_equal_requests_has_a_promise() -> None:
    promises = Promises()
    for number in range(3):
        assert promises.make(b"a", 10, wait_s=5 + number, now_s=100, is_first_try=True) == 5 + number
    assert promises.amount(100) == 30
    assert promises.make(b"a", 10, wait_s=9, now_s=102) == 5, "one of them comes too early: by then all three may"
    assert promises.amount(102) == 30
    assert [promises.redeem(b"a", 106) for _ in range(3)] == [True, True, False]
    assert promises.redeem(b"a", 107)
    assert (len(promises), promises.amount(107)) == (0, 0)


def test_who_comes_late_has_no_promise_any_more() -> None:
    promises = Promises()
    promises.make(b"a", 10, wait_s=8, now_s=100)
    promises.make(b"b", 1, wait_s=100, now_s=100)
    assert promises.amount(111.9) == 11
    assert not promises.redeem(b"a", 112.1), "a quarter of its wait and two seconds later"
    assert promises.amount(112.1) == pytest.approx(0.95), "and it is believed that fewer come back"


def test_clients_that_never_come_back_soon_hold_no_places() -> None:
    promises = Promises()
    for number in range(100):
        promises.make(b"%d" % number, 1, wait_s=1 + number, now_s=0)
    assert promises.amount(0) == 100
    assert promises.amount(100) < 0.1 * 25


def test_a_flood_that_ignores_what_it_is_told_makes_nobody_wait_longer() -> None:
    """350 requests a second, of which none comes back, where 20 are served."""
    promises = Promises()
    for number in range(20_000):
        now_s = number / 350
        told_s = promises.make(b"%d" % number, 1, wait_s=1 + promises.amount(now_s) / 20, now_s=now_s)
    assert told_s < 1.1


def test_only_so_many_are_booked() -> None:
    promises = Promises(most=2)
    assert [promises.make(name, 1, wait_s=5, now_s=0) for name in (b"a", b"b", b"c")] == [5, 5, 5]
    assert len(promises) == 2
    assert not promises.redeem(b"c", 5)


def test_who_is_told_longer_than_its_sdk_waits_is_not_booked() -> None:
    promises = Promises()
    for number in range(1000):  # a flood: each is told when those before it have gone, one in a second
        assert promises.make(b"%d" % number, 1, wait_s=1 + promises.amount(0), now_s=0) <= LONGEST_WAIT_S + 1
    assert len(promises) == LONGEST_WAIT_S


@given(
    st.lists(
        st.tuples(st.sampled_from(["make", "redeem", "amount"]), st.integers(0, 5), st.floats(0.01, 50)), max_size=60
    )
)
def test_what_is_expected_is_what_is_open(steps: list[tuple[str, int, float]]) -> None:
    promises, now_s = Promises(), 0.0
    for what, name, number in steps:
        now_s += number
        if what == "make":
            promises.make(b"%d" % name, number, wait_s=number, now_s=now_s, is_first_try=number > 25)
        elif what == "redeem":
            promises.redeem(b"%d" % name, now_s)
        expected = promises.amount(now_s) / promises.trust
        kept = [one for told in promises._open.values() for one in told]
        assert expected == pytest.approx(sum(one.amount for one in kept), abs=1e-6)
        assert len(promises) == len(kept)
        assert all(one.expires_s > now_s for one in kept)
