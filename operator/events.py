"""Events of an LLMDeployment: one per transition of a condition that a person should know about. Pure."""

from collections.abc import Sequence
from typing import Any

from penstock.operator import api
from penstock.operator.api import Condition
from penstock.operator.render import Parent, digest

_TOLD = {"Ready", "KVTransferVerified", "Progressing", "Degraded", "CapacityLimited"}
_BAD = {("Ready", "False"), ("KVTransferVerified", "False"), ("Degraded", "True"), ("CapacityLimited", "True")}


def transitions(parent: Parent, old: Sequence[Condition], new: Sequence[Condition], now: str) -> list[dict[str, Any]]:
    """Event objects for what changed between two sets of conditions."""
    before = {condition.type: condition for condition in old}
    changed = [
        condition
        for condition in new
        if condition.type in _TOLD
        and condition.status != "Unknown"
        and condition.reason != "Complete"  # told by Ready
        and (condition.status, condition.reason) != _of(before.get(condition.type))
        and not (condition.type not in before and (condition.type, condition.status) not in _BAD)
    ]
    told = {condition.reason: condition for condition in reversed(changed)}  # one reason often changes several
    return [_event(parent, condition, now) for condition in told.values()]


def _of(condition: Condition | None) -> tuple[str, str]:
    return (condition.status, condition.reason) if condition is not None else ("", "")


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
