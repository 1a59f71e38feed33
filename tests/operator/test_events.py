"""Events are about transitions only."""

from penstock.operator.api import Condition
from penstock.operator.events import transitions
from penstock.operator.render import Parent

PARENT = Parent("demo", "default", "u")
NOW = "2026-11-21T03:00:00Z"


def ready(status: str, reason: str, message: str = "") -> list[Condition]:
    return [Condition(type="Ready", status=status, reason=reason, message=message)]  # type: ignore[arg-type]


def test_no_transition_no_event() -> None:
    assert transitions(PARENT, ready("True", "Serving"), ready("True", "Serving", "other words"), NOW) == []


def test_becoming_ready_is_told_once_as_normal() -> None:
    (event,) = transitions(PARENT, ready("Unknown", "Starting"), ready("True", "Serving"), NOW)
    assert (event["type"], event["reason"], event["involvedObject"]["name"]) == ("Normal", "Serving", "demo")


def test_a_failure_is_a_warning_with_its_sentence() -> None:
    new = ready("False", "ImagePullFailed", "image x cannot be pulled")
    (event,) = transitions(PARENT, ready("Unknown", "Starting"), new, NOW)
    assert event["type"] == "Warning"
    assert "image x cannot be pulled" in event["message"]


def test_drift_is_a_warning_and_its_end_is_told_but_not_that_there_never_was_any() -> None:
    def drift(status: str, reason: str) -> list[Condition]:
        return [Condition(type="PredictionsDrift", status=status, reason=reason)]  # type: ignore[arg-type]

    unknown = drift("Unknown", "NotTold")
    off, holds = drift("True", "LoadOnlyPlacement"), drift("False", "PredictionsHold")
    assert transitions(PARENT, unknown, holds, NOW) == []
    (event,) = transitions(PARENT, unknown, off, NOW)
    assert (event["type"], event["reason"]) == ("Warning", "LoadOnlyPlacement")
    (event,) = transitions(PARENT, off, holds, NOW)
    assert (event["type"], event["reason"]) == ("Normal", "PredictionsHold")


def test_the_first_look_says_nothing_while_all_is_well() -> None:
    fine = [Condition(type="Degraded", status="False", reason="AsExpected"), *ready("Unknown", "Starting")]
    assert transitions(PARENT, [], fine, NOW) == []
