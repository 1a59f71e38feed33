"""Whether workers have room, and where a request goes whose best worker has none."""

from dataclasses import replace

import pytest

from penstock.errors import DeadlineExceeded, RequestError
from penstock.router.flow.room import Limits, Room
from penstock.router.flow.turns import Busy, Turn, take_turn
from penstock.router.placement.costs import StepCost
from penstock.router.placement.least_work import LeastWork
from penstock.router.placement.objective import Seconds
from penstock.router.policy import (
    ClusterSnapshot,
    Placement,
    PlacementRequest,
    Prediction,
    WorkerState,
)

COST = StepCost(step_s=0.0, prefill_token_s=1e-3, prefill_pair_s=0.0, decode_token_s=0.0, context_token_s=0.0)
"""A token takes a millisecond."""
ROOM = Room(ahead_s=0.25)
USUAL, IN_LINE = ROOM.of(in_line=False, heavy=False), ROOM.of(in_line=True, heavy=False)
POLICY = LeastWork(min_prefill_tokens=16)


def worker(url: str, **state: object) -> WorkerState:
    return WorkerState(url, cost=COST, **state)  # type: ignore[arg-type]


def take(wanted: PlacementRequest, cluster: ClusterSnapshot, turn: Turn = Turn()) -> Placement | Busy | None:  # noqa: B008
    return take_turn(lambda request: POLICY.choose(request, cluster), wanted, cluster, ROOM, turn)


@pytest.mark.parametrize(
    ("ahead", "turn", "lacks"),
    [
        (0, Turn(in_line=True), False),
        (249, Turn(in_line=True), False),
        (250, Turn(in_line=True), True),
        (250, Turn(heavy=True), True),
        (250, Turn(), False),
        (999, Turn(), False),
        (1000, Turn(), True),
    ],
)
def test_a_worker_has_enough_when_it_has_a_quarter_second_of_prompts(ahead: int, turn: Turn, lacks: bool) -> None:
    """Four times as much is nothing to one that stands in no line."""
    cluster = ClusterSnapshot(decode=(worker("d", prefill_tokens=ahead, prompts=2),))
    found = take(PlacementRequest(1000), cluster, turn)
    assert found == (Busy(1.0, waits_for="d") if lacks else Placement("d"))


@pytest.mark.parametrize(
    ("streams", "answers", "turn", "has_room"),
    [
        (17, 1, Turn(), True),
        (18, 1, Turn(), False),
        (17, 2, Turn(), False),
        (13, 1, Turn(heavy=True), True),
        (14, 1, Turn(heavy=True), False),
        (0, 99, Turn(heavy=True), True),
    ],
)
def test_streams_are_bounded_and_some_are_kept_from_heavy_tenants(
    streams: int, answers: int, turn: Turn, has_room: bool
) -> None:
    """An eighth more than are batched, whose prompts are computed meanwhile; for heavy ones an eighth less."""
    cluster = ClusterSnapshot(decode=(worker("d", streams=streams, max_streams=16),))
    assert isinstance(take(PlacementRequest(10, num_answers=answers), cluster, turn), Placement) == has_room
    limits = ROOM.of(in_line=False, heavy=turn.heavy)
    assert limits.any(cluster) == (streams < (14 if turn.heavy else 18)), "for one answer"


def test_where_the_limit_is_unknown_there_is_none() -> None:
    assert isinstance(take(PlacementRequest(10), ClusterSnapshot(decode=(worker("d", streams=1000),))), Placement)


def test_a_worker_that_is_predicted_to_lack_memory_has_no_room() -> None:
    cluster = ClusterSnapshot(decode=(worker("d", streams=1),))

    def lacking(**seconds: float) -> frozenset[str]:
        placement = Placement("d", prediction=Prediction(**seconds))  # type: ignore[arg-type]
        return IN_LINE.lacking(cluster, placement, num_answers=1)

    assert lacking(admit_s=0.2) == frozenset()
    assert lacking(admit_s=0.3) == {"d"}


def test_a_full_prefill_worker_is_not_waited_for_when_another_is_as_good() -> None:
    least, other = worker("p1", prefill_tokens=1100, prompts=1), worker("p2", output_tokens=1200)
    cluster = ClusterSnapshot(prefill=(least, other), decode=(worker("d"),))
    assert take(PlacementRequest(1000), cluster) == Placement("d", "p2")
    assert take(PlacementRequest(1000), ClusterSnapshot((least,), cluster.decode)) == Placement("d")


def test_the_best_worker_is_waited_for_as_long_as_its_cache_saves() -> None:
    """p1 has the conversation, 0.9 s of computing, and enough to do; p2 could begin now."""
    cluster = ClusterSnapshot(
        prefill=(worker("p1", prefill_tokens=300, prompts=1), worker("p2")), decode=(worker("d", prefill_tokens=9000),)
    )
    wanted = PlacementRequest(1000, {"p1": 900})
    line = Turn(in_line=True)
    assert take(wanted, cluster, line) == Busy(0.1, could_go=True)
    assert take(wanted, cluster, replace(line, waited_s=0.89)) == Busy(0.1, could_go=True)
    assert take(wanted, cluster, replace(line, waited_s=0.91)) == Placement("d", "p2")
    assert take(wanted, replace(cluster, prefill=(worker("p1"), worker("p2")))) == Placement("d", "p1")


def test_without_a_worker_there_is_no_turn() -> None:
    assert take(PlacementRequest(10), ClusterSnapshot()) is None
    assert USUAL.any(ClusterSnapshot()), "those who wait must be told"
    cluster = ClusterSnapshot(decode=(worker("d", streams=4, max_streams=4),))
    assert take(PlacementRequest(10, excluded=frozenset(["d"])), cluster) is None, "it has failed this request"
    assert take(PlacementRequest(10), cluster) == Busy(0.01, waits_for="d")


def test_a_prompt_that_takes_longer_than_its_client_waits_is_refused_for_good() -> None:
    cluster = ClusterSnapshot(decode=(worker("d"),))
    assert take(PlacementRequest(1000), cluster, Turn(remaining_s=0.9)) == Placement("d"), "it might be in time"
    with pytest.raises(RequestError, match=r"takes about 1 s to compute, but the client waits 0.7 s") as caught:
        take(PlacementRequest(1000), cluster, Turn(remaining_s=0.7))
    assert (caught.value.status, caught.value.code) == (503, "deadline_too_short")
    with pytest.raises(DeadlineExceeded, match=r"waited for its turn until 0.7 s were left"):
        take(PlacementRequest(1000), cluster, Turn(remaining_s=0.7, queued_s=0.2))
    with pytest.raises(RequestError, match=r"the client waits 0.75 s"):
        take(PlacementRequest(1000), cluster, Turn(remaining_s=0.7, queued_s=0.05))
    unknown = ClusterSnapshot(decode=(WorkerState("d"),))
    assert take(PlacementRequest(10**6), unknown, Turn(remaining_s=0.1)) == Placement("d"), "nothing is measured yet"


def test_a_decode_worker_that_computes_for_another_has_as_little_room_as_a_prefill_worker() -> None:
    cluster = ClusterSnapshot(decode=(worker("d1"), worker("d2", prefill_tokens=5000, prompts=1)))
    assert IN_LINE.lacking(cluster, Placement("d1", "d2"), num_answers=1) == {"d2"}


@pytest.mark.parametrize(
    ("prefill", "decode", "limits", "is_any"),
    [
        ({}, {}, IN_LINE, True),
        ({"prefill_tokens": 300}, {"prefill_tokens": 300}, IN_LINE, False),
        ({"prefill_tokens": 300}, {"prefill_tokens": 300}, USUAL, True),
        ({"prefill_tokens": 300}, {}, IN_LINE, True),
        ({}, {"prefill_tokens": 300}, IN_LINE, True),
        ({}, {"streams": 18}, IN_LINE, False),
    ],
)
def test_there_is_hope_while_somebody_computes_and_somebody_streams(
    prefill: dict[str, int], decode: dict[str, int], limits: Limits, is_any: bool
) -> None:
    cluster = ClusterSnapshot((worker("p", role="prefill", **prefill),), (worker("d", max_streams=16, **decode),))
    assert limits.any(cluster) == is_any
    assert isinstance(take(PlacementRequest(1000), cluster, Turn(in_line=limits is IN_LINE)), Placement) == is_any


BUSY = {
    "prompts everywhere": ({"prefill_tokens": 300}, {"prefill_tokens": 300}),
    "streams everywhere": ({}, {"streams": 18}),
    "prompts on all decode workers, and no memory": ({}, {"prefill_tokens": 300, "streams": 1, "num_tokens": 99}),
    "no memory": ({"prefill_tokens": 300}, {"streams": 1, "num_tokens": 99}),
}


@pytest.mark.parametrize(("prefill", "decode"), BUSY.values(), ids=BUSY.keys())
def test_however_many_workers_are_full_the_policy_is_asked_three_times_at_most(
    prefill: dict[str, int], decode: dict[str, int]
) -> None:
    """A choice among 64 workers takes most of a millisecond, and every token may be a reason to try again."""
    cluster = ClusterSnapshot(
        tuple(worker(f"p{number}", role="prefill", **prefill) for number in range(32)),
        tuple(worker(f"d{number}", max_streams=16, **decode) for number in range(32)),
    )
    wanted, policy, asked = PlacementRequest(1000), Seconds(), list[int]()

    def choose(request: PlacementRequest) -> Placement | None:
        asked.append(len(request.excluded))
        return policy.choose(request, cluster)

    assert isinstance(take_turn(choose, wanted, cluster, ROOM, Turn(in_line=True)), Busy)
    assert len(asked) <= 3


def test_a_decode_worker_with_prompts_to_compute_still_decodes_for_a_prefill_worker() -> None:
    busy = worker("d1", prefill_tokens=300, prompts=1), worker("d2", prefill_tokens=300, output_tokens=990, prompts=1)
    cluster = ClusterSnapshot((worker("p", role="prefill"),), busy)
    wanted = PlacementRequest(1000, {"d1": 990})  # on d1 alone that would be nearly nothing
    assert take(wanted, cluster, Turn(in_line=True, waited_s=9.0)) == Placement("d1", "p")


def test_a_worker_that_is_kept_for_another_is_used_for_nothing() -> None:
    cluster = ClusterSnapshot((worker("p", role="prefill"),), (worker("d1"), worker("d2", output_tokens=1)))
    assert take(PlacementRequest(1000), cluster) == Placement("d1", "p")
    assert take(PlacementRequest(1000), cluster, Turn(kept="d1")) == Placement("d2", "p")
    assert take(PlacementRequest(1000), cluster, Turn(kept="p")) == Placement("d1")
    alone = replace(cluster, decode=cluster.decode[:1])
    assert isinstance(take(PlacementRequest(1000), alone, Turn(kept="d1")), Busy)
    assert not USUAL.any(alone, kept="d1")
    assert USUAL.any(cluster, kept="d1")


def test_a_decode_worker_is_lent_only_after_as_long_a_wait_as_its_streams_would_lose() -> None:
    """Both would give the first token after a second, but on d it costs d's streams another two."""
    busy = worker("p", prefill_tokens=2000, prompts=1)
    cluster = ClusterSnapshot(prefill=(busy,), decode=(worker("d", streams=20),))
    on_p = Placement("d", "p", prediction=Prediction(prefill_s=1.0))
    on_d = Placement("d", prediction=Prediction(prefill_s=1.0, others_s=2.0))

    def take_after(waited_s: float, *, trusted: bool = True) -> Placement | Busy | None:
        def choose(request: PlacementRequest) -> Placement | None:
            placement = on_d if "p" in request.excluded else on_p
            assert placement.prediction is not None
            return replace(placement, prediction=replace(placement.prediction, trusted=trusted))

        return take_turn(choose, PlacementRequest(1000), cluster, ROOM, Turn(waited_s=waited_s))

    assert take_after(1.9) == Busy(1.0, could_go=True)
    assert take_after(2.1) == on_d
    assert isinstance(take_after(0.1, trusted=False), Placement), "what it costs others is not known"


def test_a_prefill_worker_with_room_is_not_left_idle_for_those_who_wait() -> None:
    """d alone is the best for each of thirty prompts, as each would hold up the others at p; but d is full."""
    full = worker("d", prefill_tokens=2000, prompts=2)
    cluster = ClusterSnapshot(prefill=(worker("p", role="prefill"),), decode=(full,), waiting=30)
    policy, wanted = Seconds(), PlacementRequest(1000)

    best = policy.choose(wanted, cluster)
    assert best is not None
    assert best.prefill is None
    found = take_turn(lambda request: policy.choose(request, cluster), wanted, cluster, ROOM, Turn(in_line=True))
    assert isinstance(found, Placement)
    assert found.prefill == "p"


def test_nobody_is_refused_or_held_back_by_predictions_that_are_known_to_be_off() -> None:
    cluster = ClusterSnapshot(decode=(worker("d", streams=1),))

    def take_by(prediction: Prediction) -> Placement | Busy | None:
        def choose(request: PlacementRequest) -> Placement | None:
            return None if request.excluded or request.busy else Placement("d", prediction=prediction)

        return take_turn(choose, PlacementRequest(10), cluster, ROOM, Turn(remaining_s=9.0))

    slow = Prediction(prefill_s=1e6)
    with pytest.raises(RequestError, match="takes about 1e"):
        take_by(slow)
    assert isinstance(take_by(Prediction(admit_s=1e9)), Busy)
    assert take_by(replace(slow, trusted=False)) == Placement("d")
    assert take_by(Prediction(admit_s=1e9, trusted=False)) == Placement("d")
