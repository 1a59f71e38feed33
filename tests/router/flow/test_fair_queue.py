"""Who is next, and how much is ahead of whom."""

import random
import time
from collections import Counter
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.router.flow.fair_queue import Entry, FairQueue
from penstock.router.flow.tenants import Tenant

T = TypeVar("T")

A, B, HEAVY = Tenant(name="a"), Tenant(name="b"), Tenant(name="heavy", weight=3)


def leave(queue: FairQueue[T], entry: Entry[T]) -> None:
    """It got what it waited for."""
    queue.remove(entry)
    queue.charge(entry.tenant, entry.work)


def drain(queue: FairQueue[str], most: int = 10**6) -> list[str]:
    """Items in the order in which they leave."""
    left: list[str] = []
    while len(queue) and len(left) < most:
        entry = next(queue.first(1))
        leave(queue, entry)
        left.append(entry.item)
    return left


def test_tenants_take_turns_by_work_and_not_by_requests() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(4):
        queue.push(A, "a", 300)
    for _ in range(12):
        queue.push(B, "b", 100)
    order = drain(queue)
    for end in range(1, len(order)):
        done = Counter(order[:end])
        assert abs(300 * done["a"] - 100 * done["b"]) <= 300 or done["a"] == 4 or done["b"] == 12


def test_weights_are_shares() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push(A, "a", 10)
        queue.push(HEAVY, "heavy", 10)
    done = Counter(drain(queue, 80))
    assert done["heavy"] == pytest.approx(60, abs=2)


def test_who_stayed_away_has_saved_nothing_up() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push(A, "a", 10)
    drain(queue, 50)
    for _ in range(50):
        queue.push(B, "b", 10)
    assert Counter(drain(queue, 20)) == {"a": 10, "b": 10}


def test_a_tenant_that_comes_anew_is_next() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(50):
        queue.push(A, "a", 10)
    drain(queue, 10)
    queue.push(B, "b", 10)
    assert drain(queue, 1) == ["b"]


def test_priority_orders_a_tenants_own_requests_and_classes_of_tenants() -> None:
    queue: FairQueue[str] = FairQueue()
    for name, priority in (("late", 5), ("first", 0), ("second", 0), ("urgent", -1)):
        queue.push(A, name, 1, priority)
    queue.push(Tenant(name="batch", priority=1), "batch", 1)
    queue.push(Tenant(name="gold", priority=-1), "gold", 1000)
    assert drain(queue) == ["gold", "urgent", "first", "second", "late", "batch"]


def test_who_cannot_go_is_passed_by_the_next() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in ("a1", "a2", "a3"):
        queue.push(A, name, 1)
    for name in ("b1", "b2"):
        queue.push(B, name, 1)
    assert [entry.item for entry in queue.first(9)] == ["b1", "a1", "b2", "a2", "a3"]
    assert [entry.item for entry in queue.first(3)] == ["b1", "a1", "b2"]


def test_what_was_charged_wrongly_is_set_right() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(10):
        queue.push(A, "a", 100)
        queue.push(B, "b", 100)
    drain(queue, 2)
    queue.correct(A, -90)
    assert Counter(drain(queue, 9)) == {"a": 5, "b": 4}


def test_who_has_gone_is_not_next() -> None:
    queue: FairQueue[str] = FairQueue()
    first, _ = queue.push(A, "first", 5), queue.push(A, "second", 7)
    queue.remove(first)
    queue.remove(first)
    assert (len(queue), queue.work) == (1, 7)
    assert drain(queue) == ["second"]
    assert (len(queue), queue.work, queue.surplus()) == (0, 0, None)


def test_who_has_most_waiting_makes_room() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push(A, "a", 50)
    queue.push(HEAVY, "heavy", 120)
    queue.push(B, "b1", 40)
    queue.push(B, "b2", 30)
    surplus = queue.surplus()
    assert surplus is not None
    assert surplus.item == "b2", "the last of b: 70, against 40 by heavy's weight"
    spared = queue.surplus(spare=lambda item: item == "b2")
    assert spared is not None
    assert spared.item == "b1"
    assert queue.surplus(spare=lambda _: True) is surplus


def test_or_who_has_most_tokens_of_prompts_waiting() -> None:
    queue: FairQueue[str] = FairQueue()
    a = queue.push(A, "a", 50, tokens=1)
    b = queue.push(B, "b", 1, tokens=50)
    queue.push(HEAVY, "heavy", 1, tokens=120)
    assert (queue.tokens, queue.surplus(in_tokens=True)) == (171, b), "50, against 40 by heavy's weight"
    queue.remove(b)
    queue.remove(a)
    assert queue.tokens == 120


@given(
    lines=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), max_size=40),
    newcomer=st.integers(0, 3),
    served=st.integers(0, 30),
)
def test_work_ahead_is_what_is_served_before_a_newcomer(
    lines: list[tuple[int, int]], newcomer: int, served: int
) -> None:
    """Up to one request of each other tenant, which may be begun before and end after."""
    tenants = [Tenant(name=str(number), weight=1 + number % 2, priority=number // 3) for number in range(4)]
    queue: FairQueue[str] = FairQueue()
    for tenant, work in lines:
        queue.push(tenants[tenant], "other", work)
    drain(queue, served)
    ahead = queue.ahead_of(tenants[newcomer], {})
    queue.push(tenants[newcomer], "newcomer", 1)
    before = 0.0
    while (entry := next(queue.first(1))).item != "newcomer":
        leave(queue, entry)
        before += entry.work
    assert abs(before - ahead) <= sum(dict(sorted(lines)).values())


def test_what_is_expected_counts_as_waiting() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push(A, "a", 10)
    assert queue.ahead_of(A, {"a": 5}) == 15
    assert queue.ahead_of(B, {"a": 5}) == 0
    queue.push(B, "b", 100)
    assert queue.ahead_of(B, {"a": 5}) == 115


def test_ten_thousand_requests_are_quick() -> None:
    queue: FairQueue[int] = FairQueue()
    random_ = random.Random(1)
    tenants = [Tenant(name=str(number)) for number in range(50)]
    entries: list[Entry[int]] = [queue.push(random_.choice(tenants), number, 10) for number in range(10_000)]
    for entry in random_.sample(entries, 5000):
        queue.remove(entry)
    order = []
    while len(queue):
        entry = next(queue.first(1))
        leave(queue, entry)
        order.append(entry.item)
    assert len(order) == 5000


def test_tenants_that_do_not_wait_cost_nothing() -> None:
    def seconds(num_tenants: int) -> float:
        queue: FairQueue[str] = FairQueue()
        for number in range(num_tenants):
            queue.charge(Tenant(name=str(number)), 1)
        began = time.process_time()
        for _ in range(200):
            entry = queue.push(A, "a", 10)
            assert (len(queue), queue.work, queue.surplus()) == (1, 10, entry)
            queue.ahead_of(B, {})
            assert drain(queue) == ["a"]
        return time.process_time() - began

    few_s, many_s = min(seconds(10) for _ in range(3)), min(seconds(20_000) for _ in range(3))
    assert many_s < 10 * few_s
