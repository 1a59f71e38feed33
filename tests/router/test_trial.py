"""What an error means for the request and for the workers that it was placed on."""

from types import SimpleNamespace
from typing import Any

import pytest

from penstock.errors import (
    Overloaded,
    PrefillDied,
    PrefillLost,
    RetryableError,
    Stopping,
    TransferError,
    WorkerLost,
    WorkerSilent,
)
from penstock.router.placed import Placed
from penstock.router.policy import Placement, PlacementRequest
from penstock.router.trial import PROGRESS_TOKENS, Trial, blamed, is_loss


def placed(decode: str = "d", prefill: str | None = None, **what: Any) -> Placed:
    """One attempt, of which nothing was booked."""
    unbooked: Any = None
    decision: Any = SimpleNamespace(request=PlacementRequest(9, num_answers=what.pop("num_answers", 1)))
    return Placed(
        decode=decode,
        prefill=prefill,
        source=None,
        revision="",
        reservation=unbooked,
        keys=unbooked,
        cached_tokens=0,
        as_of=0,
        source_as_of=0,
        expected=[],
        decision=decision,
        placed_at=0.0,
        arrivals={decode: 1, prefill or "": 1},
        **what,
    )


def fail(trial: Trial, attempt: Placed, error: RetryableError | None = None, *, at: int = 0) -> None:
    """As the placer does, after `at` tokens of output."""
    trial.attempts += 1
    trial.failed(attempt, error or Stopping("it leaves"), num_output=at, max_attempts=4)


def test_a_stream_that_makes_progress_may_be_interrupted_as_often_as_it_likes() -> None:
    """By a rollout, say, of more decode pods than there are attempts."""
    trial = Trial()
    for number in range(20):
        fail(trial, placed(f"d{number}", num_output=PROGRESS_TOKENS), at=(number + 1) * PROGRESS_TOKENS)
    assert trial.excluded.keys() == {"d19"}, "who failed it before may have it again"


@pytest.mark.parametrize(("num_answers", "num_output"), [(1, 0), (1, PROGRESS_TOKENS - 1), (8, 4 * PROGRESS_TOKENS)])
def test_without_progress_four_attempts_are_all(num_answers: int, num_output: int) -> None:
    trial = Trial()
    for number in range(3):
        fail(trial, placed(f"d{number}", num_output=num_output, num_answers=num_answers), at=number)
    assert trial.excluded.keys() == {"d0", "d1", "d2"}
    with pytest.raises(Stopping):
        fail(trial, placed(num_output=num_output, num_answers=num_answers), at=3)


def test_a_second_worker_lost_at_the_same_place_is_the_last() -> None:
    trial = Trial()
    fail(trial, placed(is_accepted=True, num_output=90), WorkerLost("gone"), at=90)
    with pytest.raises(WorkerLost, match="a second worker was lost at the same place"):
        fail(trial, placed(is_accepted=True), WorkerLost("gone"), at=90)


@pytest.mark.parametrize(
    ("first", "second"), [(PrefillDied, PrefillDied), (PrefillDied, WorkerLost), (WorkerLost, PrefillDied)]
)
def test_prefill_workers_that_die_with_a_request_count_too(
    first: type[RetryableError], second: type[RetryableError]
) -> None:
    trial = Trial()
    fail(trial, placed("d1", "p1", is_accepted=True), PrefillLost("silent"))
    fail(trial, placed("d1", "p2", is_accepted=True), first("gone"))
    with pytest.raises(WorkerLost, match="a second worker was lost at the same place"):
        fail(trial, placed("d2", "p3", is_accepted=True), second("gone"))


@pytest.mark.parametrize(("first", "second"), [(WorkerLost, WorkerSilent), (WorkerSilent, WorkerLost)])
def test_no_request_is_blamed_for_a_worker_that_stands_still(first: type[WorkerLost], second: type[WorkerLost]) -> None:
    """A machine without time for anybody silences one after the other."""
    trial = Trial()
    fail(trial, placed(is_accepted=True, num_output=90), first("gone"), at=90)
    fail(trial, placed(is_accepted=True), second("gone"), at=90)
    fail(trial, placed(is_accepted=True), WorkerSilent("gone"), at=90)
    assert trial.attempts == 3
    with pytest.raises(WorkerSilent):
        fail(trial, placed(is_accepted=True), WorkerSilent("gone"), at=90)


@pytest.mark.parametrize(
    ("prefill", "error", "at_fault", "lost"),
    [
        ("p", PrefillLost("gone"), "p", True),
        ("p", TransferError("unreadable"), "p", False),
        (None, PrefillLost("which?"), "d", False),
        ("p", WorkerLost("gone"), "d", True),
        ("p", Overloaded("full"), "d", False),
    ],
)
def test_who_is_at_fault(prefill: str | None, error: RetryableError, at_fault: str, lost: bool) -> None:
    attempt = placed("d", prefill)
    assert (blamed(attempt, error), is_loss(attempt, error)) == (at_fault, lost)


def test_who_has_come_back_is_no_longer_excluded() -> None:
    trial = Trial()
    for url in ("d1", "d2"):
        fail(trial, placed(url))
    assert trial.still_excluded({"d1": 1, "d2": 2}.__getitem__) == {"d1"}


def test_full_workers_are_waited_for_by_streams_only() -> None:
    trial = Trial()
    full = Overloaded("full", retry_after_s=0.5)
    fail(trial, placed(), full)
    with pytest.raises(Overloaded):
        trial.pause_s(9.0)
    fail(trial, placed(), full, at=1)
    assert trial.pause_s(9.0) == 0.5
    assert (trial.excluded, trial.last_error) == ({}, None)


def test_what_was_handed_over_is_read_from_who_leaves_once_and_by_its_own_revision() -> None:
    found = Placement("d2", "p")
    for revision, expected in (("1", Placement("d2", source="d1")), ("2", found)):
        trial, attempt = Trial(), placed("d1", is_computed=True)
        attempt.revision = "1"
        fail(trial, attempt)
        assert trial.take_over(found, revision) == expected
        assert trial.take_over(found, "1") == found


def test_from_who_leaves_before_anything_is_computed_there_is_nothing_to_read() -> None:
    trial = Trial()
    fail(trial, placed("d1", "p"))
    assert trial.take_over(Placement("d2", "p"), "") == Placement("d2", "p")
