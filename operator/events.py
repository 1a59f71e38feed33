"""Events of an LLMDeployment: one per transition of a condition that a person should know about. Pure."""

from collections.abc import Sequence
from typing import Any

from penstock.operator import api
from penstock.operator.api import Condition
from penstock.operator.render import Parent, digest

_TOLD = {"Ready", "KVTransferVerified", "Progressing", "Degraded", "CapacityLimited", "PredictionsDrift"}
_BAD = {
    ("Ready", "False"),
    ("KVTransferVerified", "False"),
    ("Degraded", "True"),
    ("CapacityLimited", "True"),
    ("PredictionsDrift", "True"),
}


def transitions(parent: Parent, old: Sequence[Condition], new: Sequence[Condition], now: str) -> list[dict[str, Any]]:
    """Event objects for what changed between two sets of conditions."""
    before = {condition.type: condition for condition in old}
    changed = [condition for condition in new if _is_news(before.get(condition.type), condition)]
    told = {condition.reason: condition for condition in reversed(changed)}  # one reason often changes several
    return [_event(parent, condition, now) for condition in told.values()]


def _is_news(old: Condition | None, new: Condition) -> bool:
    if new.type not in _TOLD or new.status == "Unknown" or new.reason == "Complete":  # Ready tells of that
        return False
    if old is not None and (old.status, old.reason) == (new.status, new.reason):
        return False
    if (new.type, new.status) in _BAD:
        return True
    return old is not None and (old.status, new.status) != ("Unknown", "False")  # nothing bad is no news if none was


def _event(parent: Parent, condition: Condition, now: str) -> dict[str, Any]:
    is_bad = (condition.type, condition.status) in _BAD or (
        condition.type == "Progressing" and condition.reason not in ("Complete", "RollingOut", "Starting")
    )
    name = f"{parent.name}.{digest([parent.uid, condition.type, condition.status, condition.reason, now], 8)}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": parent.namespace},
        "involvedObject": {
            "apiVersion": api.API_VERSION,
            "kind": "LLMDeployment",
            "name": parent.name,
            "namespace": parent.namespace,
            "uid": parent.uid,
        },
        "type": "Warning" if is_bad else "Normal",
        "reason": condition.reason,
        "message": f"{condition.type} is {condition.status}: {condition.message}"[:1000],
        "source": {"component": "penstock-operator"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
