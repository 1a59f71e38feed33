"""From what was observed to the conditions of an LLMDeployment: one function per condition, no I/O.

Messages must not change while nothing happens: each change is a write. So they hold no times and no pod names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from penstock.operator.api import ROLES, Condition, Role
from penstock.operator.observed import Verification
from penstock.operator.problems import POD_FAILED, PodState, Problem

State = Literal["True", "False", "Unknown"]
Verdict = tuple[State, str, str]

TYPES = (
    "Ready",
    "PrefillAvailable",
    "DecodeAvailable",
    "RouterAvailable",
    "KVTransferVerified",
    "Progressing",
    "Scaling",
    "CapacityLimited",
    "PredictionsDrift",
    "Degraded",
)
_PREDICTED = {"ttft": "time to first token", "cached_tokens": "cached tokens"}
"""What routers predict, in words; one of another version may know more."""


@dataclass(frozen=True)
class Facts:
    """All that conditions depend on."""

    wanted: Mapping[Role, int]
    ready: Mapping[Role, int]
    existing: Mapping[Role, int]
    """Pods that exist, ready or not."""
    pods: Sequence[PodState] = ()
    pod_failures: Sequence[str] = ()
    """Why Deployments cannot create pods."""
    target: str = ""
    serving: str = ""
    """The revision that was complete last; "" before the first."""
    is_complete: bool = False
    """The target serves, alone and whole."""
    spec_error: str = ""
    refusals: Sequence[str] = ()
    verification: Verification | None = None
    fetching: str = ""
    """How far the fetching of the model is, while pods do so."""
    drift: Sequence[str] | None = None
    """What a router predicts wrongly; None while none has been asked."""
    has_service: bool = True
    """The Service that clients use is there, and is the deployment's own."""

    def problem(self, role: Role | None = None) -> Problem | None:
        """The worst problem of a role's pods, or of all. Before anything serves, those of a spec that was replaced do
        not count: they go as soon as the new pods are ready."""
        found = [
            pod.problem
            for pod in self.pods
            if pod.problem
            and role in (None, pod.role)
            and (self.serving or self._is_new(pod))
            and not self._is_past(pod)
        ]
        return max(found, default=None)

    def blocked(self) -> tuple[str, str] | None:
        """Why the target does not come up, if waiting will not help."""
        if self.spec_error:
            return "SpecInvalid", self.spec_error
        if self.refusals:
            return "Refused", self.refusals[0]
        if self.pod_failures:
            return "PodsRefused", self.pod_failures[0]
        problem = max((pod.problem for pod in self.pods if pod.problem and self._is_new(pod)), default=None)
        return (problem.reason, problem.message) if problem is not None and problem.is_lasting else None

    def _is_past(self, pod: PodState) -> bool:
        """A failed pod stays in the list for days after another one took its place."""
        role: Any = pod.role
        is_whole = self.ready.get(role, 0) >= self.wanted.get(role, 0)
        return is_whole and pod.problem is not None and pod.problem.reason == POD_FAILED

    def _is_new(self, pod: PodState) -> bool:
        return pod.revision in ("", self.target)


def conditions(facts: Facts, old: Sequence[Condition], generation: int, now: str) -> list[Condition]:
    """All conditions; those whose status is unchanged keep their time."""
    available = {role: _available(facts, role) for role in ROLES}
    transfers = _transfers(facts)
    before = {condition.type: condition for condition in old}
    verdicts: dict[str, Verdict] = {
        "Ready": _ready(facts, available),
        "PrefillAvailable": available["prefill"],
        "DecodeAvailable": available["decode"],
        "RouterAvailable": available["router"],
        "KVTransferVerified": transfers,
        "Progressing": _progressing(facts),
        "Scaling": _scaling(facts),
        "CapacityLimited": _capacity(facts),
        "PredictionsDrift": _predictions(facts, before.get("PredictionsDrift")),
        "Degraded": _degraded(facts, available, transfers),
    }
    return [_condition(kind, verdicts[kind], before.get(kind), generation, now) for kind in TYPES]


def _condition(kind: str, verdict: Verdict, old: Condition | None, generation: int, now: str) -> Condition:
    status, reason, message = verdict
    since = old.last_transition_time if old is not None and old.status == status else now
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=since or now,
    )


def _available(facts: Facts, role: Role) -> Verdict:
    wanted, ready = facts.wanted[role], facts.ready[role]
    if wanted == 0:
        return ("True" if role == "prefill" else "False"), "ScaledToZero", f"{role} is scaled to zero"
    count = f"{min(ready, wanted)} of {wanted} ready"
    # Before the first revision is complete all must be there. Afterwards requests are answered while there is one: pods
    # that a scaling has just added must not make it unavailable.
    needed = 1 if facts.serving else wanted
    if ready >= wanted:
        return "True", "AllReady", count
    problem = facts.problem(role)
    why = f"{count}: {problem.message}" if problem else count
    if ready >= needed:
        return "True", "EnoughReady", why
    if problem is not None:
        return "False", problem.reason, why
    if facts.fetching and not facts.serving:  # the problem of another role's pod, maybe a replaced one, can wait
        return "Unknown", "FetchingModel", f"{count}: {facts.fetching}"
    blocked = facts.blocked()
    if blocked is not None and not facts.serving:
        return "False", *blocked
    if facts.serving:
        return "False", "TooFewReady", count
    return "Unknown", "Starting", count


def _ready(facts: Facts, available: Mapping[Role, Verdict]) -> Verdict:
    for role in ROLES:
        status, reason, message = available[role]
        if status == "False":
            return "False", reason, f"{role}: {message}"
    if facts.spec_error and not facts.serving:
        return "False", "SpecInvalid", facts.spec_error
    if facts.refusals and not facts.has_service:
        return "False", "Refused", facts.refusals[0]
    if any(reason == "FetchingModel" for _, reason, _ in available.values()):
        return "Unknown", "FetchingModel", facts.fetching
    if any(status == "Unknown" for status, _, _ in available.values()):
        said = ", ".join(f"{role} {available[role][2]}" for role in ROLES)
        return "Unknown", "Starting", said
    if not facts.serving and not facts.is_complete:
        return "Unknown", "Starting", "the first revision is not complete yet"
    return "True", "Serving", "requests are answered"


def _transfers(facts: Facts) -> Verdict:
    if facts.wanted["prefill"] == 0:
        return "Unknown", "NoPrefillPool", "no KV blocks move while prefill is scaled to zero"
    if facts.verification is None:
        return "Unknown", "NotTried", "no KV block has been moved yet"
    verified = facts.verification
    status: State = "Unknown" if verified.is_verified is None else "True" if verified.is_verified else "False"
    return status, verified.reason, verified.message


def _progressing(facts: Facts) -> Verdict:
    if facts.is_complete and not facts.spec_error:
        return "False", "Complete", f"revision {facts.target} serves"
    beside = f"; revision {facts.serving} goes on serving" if facts.serving and facts.serving != facts.target else ""
    if (blocked := facts.blocked()) is not None:
        reason, message = blocked
        return "False", reason, f"{message}{beside}"
    return "True", "RollingOut" if facts.serving else "Starting", f"revision {facts.target} is coming up{beside}"


def _scaling(facts: Facts) -> Verdict:
    if not facts.is_complete:
        return "Unknown", "RollingOut", "replicas follow the rollout"
    off = [
        f"{role} {facts.existing[role]} to {facts.wanted[role]}"
        for role in ROLES
        if facts.existing[role] != facts.wanted[role]
    ]
    return ("True", "Scaling", ", ".join(off)) if off else ("False", "Steady", "as many pods as wanted")


def _capacity(facts: Facts) -> Verdict:
    if facts.pod_failures:
        return "True", "PodsRefused", facts.pod_failures[0]
    full = [pod.problem for pod in facts.pods if pod.problem and pod.problem.reason == "Unschedulable"]
    if full:
        return "True", "Unschedulable", f"{len(full)} pods wait: {max(full).message}"
    return "False", "Fits", "every pod has its place"


def _predictions(facts: Facts, old: Condition | None) -> Verdict:
    """Not part of Degraded: every answer is right and nothing is refused because of it."""
    if facts.drift is None and facts.ready["router"] and old is not None:
        return old.status, old.reason, old.message  # an operator that has just begun has not asked yet
    if facts.drift is None:
        return "Unknown", "NotTold", "no router has said yet whether its predictions hold"
    if not facts.drift:
        return "False", "PredictionsHold", "no router finds its predictions off"
    what = " and of ".join(_PREDICTED.get(name, name) for name in facts.drift)
    said = f"a router's predictions of {what} are off: it places by load alone until they hold again"
    return "True", "LoadOnlyPlacement", said


def _degraded(facts: Facts, available: Mapping[Role, Verdict], transfers: Verdict) -> Verdict:
    if (blocked := facts.blocked()) is not None:
        return "True", *blocked
    if (problem := facts.problem()) is not None:
        return "True", problem.reason, problem.message
    if transfers[0] == "False":
        return "True", "TransfersFail", transfers[2]
    if facts.serving:
        for role in ROLES:
            status, reason, message = available[role]
            if status == "False":
                return "True", reason, f"{role}: {message}"
    return "False", "AsExpected", "nothing is wrong"
