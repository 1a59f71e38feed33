"""What is booked, and what workers report beyond it."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.protocol import Events, Load, StepTiming
from penstock.router.placement.books import _MOST_STATES, About, Account, Booking, Books
from penstock.router.policy import Placement, PlacementRequest, WorkerState

PAIR = Placement("d", "p")


def books() -> Books:
    found = Books()
    found.open("p", "prefill", "r1", "node-1")
    found.open("d", "decode", "r1", "node-2")
    return found


def state(of: Books, url: str, now_s: float = 0.0) -> WorkerState:
    snapshot = of.snapshot(["p", "d"], now_s)
    return next(each for each in (*snapshot.prefill, *snapshot.decode) if each.url == url)


def load(of: Books, url: str, **fields: int) -> None:
    of.observed(url, Events(generation="g", sequence=0, load=Load(**fields)), 0.0)


def test_a_pair_is_booked_on_both() -> None:
    ledger = books()
    request = PlacementRequest(1000, {"p": 400, "d": 300}, output_tokens=50, num_answers=2)
    booking = ledger.book(PAIR, request, 0.0)
    prefill, decode = state(ledger, "p"), state(ledger, "d")
    assert (prefill.prompts, prefill.prefill_tokens, prefill.streams) == (1, 600, 0)
    assert prefill.prefill_pairs == sum(range(401, 1001))
    assert (decode.prompts, decode.streams, decode.context_tokens, decode.output_tokens) == (0, 2, 2000, 100)
    booking.produced(10, 1.0)
    prefill, decode = state(ledger, "p"), state(ledger, "d")
    assert (prefill.prompts, prefill.prefill_tokens, prefill.prefill_pairs) == (0, 0, 0)
    assert (decode.context_tokens, decode.output_tokens) == (2010, 90)
    booking.release(2.0)
    booking.release(3.0)
    assert ledger.in_flight("d") == (0, 0)
    assert state(ledger, "d").context_tokens == 0


def test_what_a_source_has_need_not_be_computed() -> None:
    ledger = books()
    ledger.book(Placement("d", "p", source="x"), PlacementRequest(1000, {"p": 100, "x": 700}), 0.0)
    assert state(ledger, "p").prefill_tokens == 300


def test_the_first_prompt_of_a_queue_has_been_computing_since_the_one_before_ended() -> None:
    ledger = books()
    first = ledger.book(PAIR, PlacementRequest(100), 1.0)
    second = ledger.book(PAIR, PlacementRequest(200), 2.0)
    assert (state(ledger, "p").head_since_s, state(ledger, "p").head_tokens) == (1.0, 100)
    first.produced(1, 5.0)
    assert (state(ledger, "p").head_since_s, state(ledger, "p").head_tokens) == (5.0, 200)
    second.release(6.0)
    ledger.book(PAIR, PlacementRequest(300), 9.0)
    assert state(ledger, "p").head_since_s == 9.0


def test_a_request_finds_only_prompts_that_do_not_go_behind_it() -> None:
    ledger = books()
    ledger.book(PAIR, PlacementRequest(100, priority=1), 1.0)
    urgent = ledger.book(PAIR, PlacementRequest(200), 2.0)
    ledger.book(PAIR, PlacementRequest(300, num_answers=2), 3.0)
    urgent.produced(1, 5.0)

    def seen(priority: float) -> tuple[int, ...]:
        snapshot = ledger.snapshot(["p", "d"], 9.0, priority=priority)
        (prefill,), (decode,) = snapshot.prefill, snapshot.decode
        head = prefill.head_tokens, prefill.head_since_s
        of_pool = prefill.prompts, prefill.prefill_tokens, prefill.prefill_pairs, *head, prefill.tokens_behind
        return *of_pool, decode.streams, decode.streams_behind

    last, middle = sum(range(1, 101)), sum(range(1, 301))
    assert seen(-1) == (0, 0, 0, 0, 0.0, 400, 4, 4), "all of them decode in the same steps, but all go behind it"
    assert seen(0) == (1, 300, middle, 300, 5.0, 100, 4, 1)
    assert seen(1) == seen(9) == (2, 400, middle + last, 300, 5.0, 0, 4, 0), "the most urgent is computed first"
    assert ledger.totals()["p"].prompts == 2, "other routers are told of all"


def test_a_prompt_makes_no_progress_while_a_more_urgent_one_is_computed() -> None:
    ledger = books()
    ledger.book(PAIR, PlacementRequest(100, priority=1), 1.0)
    urgent = ledger.book(PAIR, PlacementRequest(200), 2.0)
    urgent.produced(1, 5.0)
    assert (state(ledger, "p").head_tokens, state(ledger, "p").head_since_s) == (100, 4.0), "1 s, and from 5.0 on"


@pytest.mark.parametrize("seed", range(20))
def test_only_the_first_of_the_most_urgent_makes_progress_however_lines_come_and_go(seed: int) -> None:
    random_, ledger = random.Random(seed), books()
    progress: dict[Booking, float] = {}
    priorities: dict[Booking, int] = {}
    first: Booking | None = None
    for now_s in range(200):
        if first is not None:
            progress[first] += 1
            assert now_s - state(ledger, "p").head_since_s == progress[first]
        if random_.random() < 0.5:
            priority = random_.randrange(4)
            booking = ledger.book(PAIR, PlacementRequest(100, priority=priority), now_s)
            progress[booking], priorities[booking] = 0, priority
        elif priorities:
            leaving = random_.choice(list(priorities))
            leaving.release(now_s)
            del priorities[leaving]
        first = min(priorities, key=priorities.__getitem__, default=None)  # of equals, who came first


def test_few_states_of_a_worker_are_kept() -> None:
    ledger = books()
    for priority in range(100):
        ledger.book(PAIR, PlacementRequest(10, priority=priority), 0.0)
    found = [ledger.snapshot(["p"], 0.0, priority=priority).prefill[0].prompts for priority in range(100)]
    assert found == list(range(1, 101))
    assert len(ledger._accounts["p"].states) <= _MOST_STATES


def test_work_that_this_router_did_not_place_counts_too() -> None:
    ledger = books()
    ledger.book(PAIR, PlacementRequest(100), 0.0)
    load(ledger, "p", running=1, waiting=2, prefill_tokens=3000)
    load(ledger, "d", running=4, context_tokens=8000)
    assert (state(ledger, "p").prompts, state(ledger, "p").prefill_tokens) == (3, 2100)
    assert (state(ledger, "d").streams, state(ledger, "d").context_tokens) == (4, 6100)


def test_what_a_worker_said_before_it_fell_silent_is_not_its_load() -> None:
    ledger = books()
    ledger.book(Placement("d"), PlacementRequest(100), 0.0)
    load(ledger, "d", running=40, context_tokens=8000, num_blocks=10, free_blocks=0)
    assert state(ledger, "d").streams == 40
    ledger.unheard("d")
    ledger.unheard("a stranger")
    assert (state(ledger, "d").streams, state(ledger, "d").num_tokens) == (1, 0), "what is booked, and unknown"


def test_costs_are_learned_from_a_hundred_steps_of_a_worker_in_a_second() -> None:
    account = Account("d", "decode")
    flood = (StepTiming(1, 1, 1, 0.1),) * 256
    assert [len(account.sampled(flood, now_s)) for now_s in (0.0, 0.0, 0.25, 60.0)] == [100, 0, 25, 100]
    assert account.sampled(flood[:3], 61.0) == flood[:3]


def test_work_that_it_did_place_is_not_counted_twice() -> None:
    ledger = books()
    ledger.book(Placement("d"), PlacementRequest(100), 0.0)
    before = state(ledger, "d")
    load(ledger, "d", running=1, prefill_tokens=100, context_tokens=100)
    after = state(ledger, "d")
    assert (after.streams, after.prefill_tokens, after.context_tokens) == (1, 100, 100)
    assert (after.streams, after.prefill_tokens) == (before.streams, before.prefill_tokens)


def test_two_routers_that_tell_each_other_see_what_one_would() -> None:
    one, two, together = books(), books(), books()
    for number, tokens in enumerate((1000, 300, 70)):
        request = PlacementRequest(tokens, {"d": 50}, output_tokens=40)
        for ledger in ((one, two)[number % 2], together):
            ledger.book(PAIR if number else Placement("d"), request, 0.0)
    totals = one.totals(), two.totals()
    one.others(totals[1])
    two.others(totals[0])
    for ledger in (one, two, together):
        load(ledger, "d", running=4, prefill_tokens=100, context_tokens=400, free_blocks=200, num_blocks=500)
    for url in ("p", "d"):
        # Whose prompt is the first there, only its own router says.
        seen = [
            msgspec.structs.replace(state(ledger, url), head_tokens=0, head_pairs=0) for ledger in (one, two, together)
        ]
        assert seen[0] == seen[1] == seen[2]
    two.others({})
    assert state(two, "d").streams == 4, "now the worker's own figures tell of the other router's work"


def test_memory_is_what_the_worker_reports_less_what_is_on_its_way() -> None:
    ledger = books()
    ledger.describe("d", About(kind="h100", block_tokens=16, step_tokens=512))
    assert state(ledger, "d").num_tokens == 0, "unknown"
    load(ledger, "d", free_blocks=100, evictable_blocks=90, num_blocks=200)
    assert (state(ledger, "d").num_tokens, state(ledger, "d").free_tokens) == (3200, 1600)
    booking = ledger.book(PAIR, PlacementRequest(1000, {"d": 200}), 0.0)
    assert (state(ledger, "d").free_tokens, state(ledger, "d").evictable_tokens) == (800, 800)
    booking.produced(1, 0.0)
    assert state(ledger, "d").free_tokens == 1600, "from here on the worker's own figure has it"


def test_a_worker_that_left_is_forgotten_and_its_bookings_still_end() -> None:
    ledger = books()
    booking = ledger.book(PAIR, PlacementRequest(100), 0.0)
    ledger.close("p")
    ledger.open("p", "prefill")
    assert ledger.in_flight("p") == (0, 0), "another process at the same address"
    booking.produced(3, 1.0)
    booking.release(1.0)
    assert (ledger.in_flight("p"), ledger.in_flight("d")) == ((0, 0), (0, 0))
    ledger.close("p")
    assert ledger.observed("p", Events(generation="g", sequence=0, load=Load()), 0.0) == 0
    ledger.book(PAIR, PlacementRequest(100), 0.0).release(0.0)


def test_every_figure_of_a_state_is_in_its_own_place() -> None:
    ledger = books()
    ledger.describe("d", About(kind="h100", block_tokens=16, step_tokens=512, layout="l1", max_streams=48))
    ledger.book(Placement("d"), PlacementRequest(50, output_tokens=7), 3.0)
    ledger.book(Placement("d"), PlacementRequest(30, {"d": 10}, output_tokens=4, num_answers=2), 4.0)
    memory = {"free_blocks": 90, "evictable_blocks": 5, "num_blocks": 99}
    load(ledger, "d", running=6, prefill_tokens=200, context_tokens=400, **memory)
    assert msgspec.structs.asdict(state(ledger, "d")) == {
        "url": "d",
        "prefill_tokens": 50 + 20 + 100,
        "output_tokens": 7 + 8,
        "revision": "r1 l1",
        "role": "decode",
        "kind": "h100",
        "node": "node-2",
        "prompts": 2,
        "prefill_pairs": sum(range(1, 51)) + sum(range(11, 31)),
        "head_tokens": 50,
        "head_pairs": sum(range(1, 51)),
        "head_since_s": 3.0,
        "streams": 3 + 3,
        "max_streams": 48,
        "context_tokens": 50 + 60 + 200,
        "num_tokens": 16 * 99,
        "free_tokens": 16 * 90 - 70,
        "evictable_tokens": 16 * 5,
        "block_tokens": 16,
        "step_tokens": 512,
        "cost": ledger.model.cost("d", "h100"),
        "streams_behind": 0,
        "tokens_behind": 0,
        "pairs_behind": 0,
    }


def test_states_are_made_anew_only_when_something_changed() -> None:
    ledger = books()
    before = state(ledger, "d")
    ledger.book(Placement("d"), PlacementRequest(10), 0.0).release(0.0)
    after = state(ledger, "d")
    assert after is not before
    assert state(ledger, "d", 5.0) is after


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_empty_cluster_has_an_empty_snapshot(role: str) -> None:
    assert getattr(Books().snapshot([], 0.0), role) == ()


@given(st.lists(st.tuples(st.sampled_from(["pair", "alone", "produce", "release"]), st.integers(0, 9)), max_size=40))
def test_when_all_is_released_nothing_is_left(actions: list[tuple[str, int]]) -> None:
    ledger = books()
    empty = [state(ledger, url) for url in ("p", "d")]
    bookings: list[Booking] = []
    for now, (action, which) in enumerate(actions):
        if action in ("pair", "alone"):
            placement = PAIR if action == "pair" else Placement("d")
            bookings.append(ledger.book(placement, PlacementRequest(10 * which + 1, {"d": 7, "p": 16}), now))
        elif bookings and action == "produce":
            bookings[which % len(bookings)].produced(which, now)
        elif bookings:
            bookings[which % len(bookings)].release(now)
        snapshot = ledger.snapshot(["p", "d"], now)
        for each in (*snapshot.prefill, *snapshot.decode):
            assert min(each.prefill_tokens, each.prefill_pairs, each.streams, each.output_tokens, each.prompts) >= 0
            assert each.head_tokens <= each.prefill_tokens
    for booking in bookings:
        booking.release(99)
    left = [state(ledger, url) for url in ("p", "d")]
    fields = ("prefill_tokens", "prefill_pairs", "streams", "context_tokens", "output_tokens", "prompts", "free_tokens")
    assert [[getattr(each, name) for name in fields] for each in left] == [
        [getattr(each, name) for name in fields] for each in empty
    ]
