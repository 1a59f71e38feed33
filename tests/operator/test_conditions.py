"""Conditions tell the truth, and tell it in the same words while nothing changes."""

from typing import Any

from penstock.operator.api import Condition
from penstock.operator.conditions import TYPES, Facts, conditions
from penstock.operator.observed import Verification
from penstock.operator.problems import PodState, Problem

EARLY, NOW = "2026-11-21T03:00:00Z", "2026-11-21T03:05:00Z"
TWO = {"prefill": 2, "decode": 2, "router": 1}
FULL = Problem(5, "Unschedulable", "no node fits: Insufficient nvidia.com/gpu")


def facts(**changes: Any) -> Facts:
    """A deployment that serves."""
    good: dict[str, Any] = {"wanted": TWO, "ready": TWO, "existing": TWO, "target": "a", "serving": "a"}
    return Facts(**good | {"is_complete": True} | changes)


def of(found: Facts, old: list[Condition] | None = None) -> dict[str, Condition]:
    return {condition.type: condition for condition in conditions(found, old or [], 3, NOW)}


def test_all_conditions_are_there_from_the_first_look() -> None:
    nothing = dict.fromkeys(TWO, 0)
    found = of(facts(ready=nothing, existing=nothing, serving="", is_complete=False))
    assert tuple(found) == TYPES
    assert {found[kind].status for kind in ("Ready", "PrefillAvailable", "KVTransferVerified")} == {"Unknown"}
    assert {condition.observed_generation for condition in found.values()} == {3}
    assert {condition.last_transition_time for condition in found.values()} == {NOW}


def test_a_condition_that_stays_keeps_its_time() -> None:
    old = [Condition(type="Ready", status="True", reason="Serving", last_transition_time=EARLY)]
    assert of(facts(), old)["Ready"].last_transition_time == EARLY
    old = [Condition(type="Ready", status="False", reason="TooFewReady", last_transition_time=EARLY)]
    assert of(facts(), old)["Ready"].last_transition_time == NOW


def test_scaling_up_is_no_failure() -> None:
    more = TWO | {"decode": 8}
    found = of(facts(wanted=more, existing=more))
    assert (found["Ready"].status, found["Degraded"].status) == ("True", "False")
    assert found["DecodeAvailable"].message == "2 of 8 ready"
    assert of(facts(wanted=more))["Scaling"].status == "True"


def test_an_evicted_pod_counts_until_another_one_took_its_place() -> None:
    evicted = PodState("a", "decode", "a", False, Problem(2, "PodFailed", "a pod failed: Evicted", is_lasting=False))
    missing = of(facts(pods=[evicted], ready=TWO | {"decode": 1}))
    assert (missing["Degraded"].status, missing["Degraded"].reason) == ("True", "PodFailed")
    assert of(facts(pods=[evicted]))["Degraded"].status == "False"


def test_a_pool_without_a_ready_pod_is_not_available() -> None:
    found = of(facts(ready=TWO | {"decode": 0}))
    assert (found["Ready"].status, found["Ready"].reason) == ("False", "TooFewReady")
    assert found["Ready"].message == "decode: 0 of 2 ready"
    assert found["Degraded"].status == "True"
    assert found["PrefillAvailable"].status == "True"


def test_pods_that_find_no_node_are_a_limit_of_capacity() -> None:
    pods = [PodState(f"p{index}", "decode", "a", False, FULL) for index in range(3)]
    found = of(facts(pods=pods))
    assert found["CapacityLimited"].status == "True"
    assert found["CapacityLimited"].message == "3 pods wait: no node fits: Insufficient nvidia.com/gpu"
    assert found["Ready"].status == "True"


def test_a_quota_is_a_limit_of_capacity() -> None:
    said = "pods is forbidden: exceeded quota"
    found = of(facts(pod_failures=[said], serving="", is_complete=False, ready=dict.fromkeys(TWO, 0)))
    assert (found["CapacityLimited"].reason, found["CapacityLimited"].message) == ("PodsRefused", said)
    assert found["Ready"].status == "False"


def test_prefill_may_be_scaled_to_zero_and_decode_may_not() -> None:
    found = of(facts(wanted=TWO | {"prefill": 0}, ready=TWO | {"prefill": 0}, existing=TWO | {"prefill": 0}))
    assert found["Ready"].status == "True"
    assert found["KVTransferVerified"].reason == "NoPrefillPool"
    found = of(facts(wanted=TWO | {"decode": 0}, ready=TWO | {"decode": 0}))
    assert (found["Ready"].status, found["Ready"].reason) == ("False", "ScaledToZero")


def test_pods_up_do_not_verify_transfers() -> None:
    assert of(facts())["KVTransferVerified"].status == "Unknown"
    moved = Verification(True, "BlocksMoved", "KV blocks move between prefill and decode workers")
    assert of(facts(verification=moved))["KVTransferVerified"].status == "True"


def test_drift_is_told_with_what_is_off_and_what_routers_do_about_it() -> None:
    found = of(facts(drift=("cached_tokens", "ttft")))
    drift = found["PredictionsDrift"]
    assert (drift.status, drift.reason) == ("True", "LoadOnlyPlacement")
    assert drift.message == (
        "a router's predictions of cached tokens and of time to first token are off: "
        "it places by load alone until they hold again"
    )
    assert (found["Ready"].status, found["Degraded"].status) == ("True", "False"), "nothing fails because of it"
    calm = of(facts(drift=()), list(found.values()))["PredictionsDrift"]
    assert (calm.status, calm.reason, calm.last_transition_time) == ("False", "PredictionsHold", NOW)


def test_an_operator_that_has_asked_no_router_yet_keeps_what_another_was_told() -> None:
    old = list(of(facts(drift=("ttft",))).values())
    said = of(facts(drift=("ttft",)))["PredictionsDrift"]
    assert of(facts(), old)["PredictionsDrift"] == said
    assert of(facts(ready=TWO | {"router": 0}), old)["PredictionsDrift"].status == "Unknown", "it may be gone with them"
    assert of(facts())["PredictionsDrift"].reason == "NotTold"


def test_messages_hold_no_pod_names_and_no_times() -> None:
    pods = [PodState("demo-prefill-a-x7k2p", "prefill", "a", False, FULL)]
    for condition in of(facts(pods=pods)).values():
        assert "x7k2p" not in condition.message
        assert NOW not in condition.message
