"""`plan(subject, observed) -> actions`: everything that should happen next to one LLMDeployment. Pure, level-based.

It looks only at what is, never at what was done before: called again after any crash it comes to the same end.
Read it from `plan` down: replicas of the pools, the rollout's step, the objects that should exist, and the status.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from penstock.operator import api, names, render
from penstock.operator.actions import (
    Action,
    Apply,
    Create,
    CreateSecret,
    Delete,
    Rescale,
    Seed,
    WritePoolStatus,
    WriteStatus,
)
from penstock.operator.api import ROLES, WORKER_ROLES, Role
from penstock.operator.conditions import Facts, conditions
from penstock.operator.drift import covers
from penstock.operator.observed import Observed, Seen, Workload, stored_revision
from penstock.operator.pods import served_name
from penstock.operator.render import Manifest, Parent, Revision
from penstock.operator.rollout import Rollout, rollout


@dataclass(frozen=True)
class Subject:
    """One LLMDeployment as its user wants it."""

    parent: Parent
    generation: int
    spec: api.Spec
    target: Revision | None
    """What the spec asks for; None when it cannot be rendered, and `spec_error` says why."""
    spec_error: str = ""


@dataclass(frozen=True)
class Plan:
    """`actions` in their order; `status` is what the LLMDeployment's status should say."""

    actions: tuple[Action, ...]
    status: api.Status
    look_again_at: str = ""
    """When time alone changes the plan (RFC 3339), if it does."""


@dataclass(frozen=True)
class _State:
    """What follows from the observation, before any decision about objects."""

    wanted: Mapping[Role, int]
    serving: Revision | None
    """The revision that goes on serving while the target comes up; None when there is none beside the target."""
    workloads: Mapping[tuple[Role, str], Workload]
    step: Rollout
    is_complete: bool
    """The target serves, alone; once it does, a missing pod is no rollout any more."""


def plan(subject: Subject, observed: Observed, now: str) -> Plan:
    """The next actions. `now` (RFC 3339) dates the conditions that change."""
    observed = _noting_foreign(subject.parent, observed)
    pool_actions, wanted = _pools(subject, observed)
    state = _state(subject, observed, wanted, now)
    objects = _objects(subject, observed, state)
    actions: list[Action] = [*pool_actions]
    if objects:
        actions += _secret(observed)
        actions += [change for manifest in objects if (change := _change(manifest, observed)) is not None]
        actions += _leftovers(objects, observed)
    status = _status(subject, observed, state, now)
    actions += _pool_statuses(subject, observed, state, status.revision)
    if status != observed.status:
        actions.append(WriteStatus(status))
    return Plan(tuple(actions), status, min(_router_ends(observed, now), default=""))


def _noting_foreign(parent: Parent, observed: Observed) -> Observed:
    """Objects of an earlier LLMDeployment of the same name are left to the garbage collector, and mentioned."""
    foreign = [found for found in observed.objects.values() if _is_foreign(parent.uid, found)]
    if not foreign:
        return observed
    said = f"{foreign[0].kind} {foreign[0].name} of an earlier LLMDeployment of this name is still being deleted"
    return replace(observed, refusals=(*observed.refusals, said))


def _is_foreign(parent_uid: str, found: Seen) -> bool:
    return found.owner_uid not in ("", parent_uid)


def _pools(subject: Subject, observed: Observed) -> tuple[list[Action], dict[Role, int]]:
    """The LLMPools, and how many replicas of each role are wanted."""
    actions: list[Action] = []
    wanted: dict[Role, int] = {}
    for role in ROLES:
        declared: int = getattr(subject.spec, role).replicas
        manifest = render.pool(subject.parent, role, subject.spec)
        found = observed.objects.get(("LLMPool", names.pool_name(subject.parent.name, role)))
        if found is None:
            wanted[role] = _replicas_now(observed, role, declared)
            manifest["spec"] |= {"replicas": wanted[role], "declaredReplicas": declared}
            actions.append(Seed(manifest))
            continue
        if _is_foreign(subject.parent.uid, found):
            wanted[role] = declared
            continue
        spec = found.manifest()["spec"]
        wanted[role] = spec["replicas"]
        if spec.get("declaredReplicas") != declared:
            wanted[role] = declared
            actions.append(Rescale(found.name, found.uid, declared))
        wanted[role] = min(max(wanted[role], manifest["spec"]["minReplicas"]), manifest["spec"]["maxReplicas"])
        if (change := _change(manifest, observed)) is not None:
            actions.append(change)
    return actions, wanted


def _replicas_now(observed: Observed, role: Role, declared: int) -> int:
    """What an LLMPool that somebody deleted must have said: its pods should not notice."""
    return max((workload.wanted for workload in observed.workloads if workload.role == role), default=declared)


def _state(subject: Subject, observed: Observed, wanted: dict[Role, int], now: str) -> _State:
    # One whose labels somebody has changed is put right by _change and does not count until then.
    workloads = {(role, found.revision): found for role in ROLES for found in observed.workloads if found.role == role}
    target = subject.target
    serving = _serving(observed, workloads, target.hash if target else "")
    if target is None:
        none: Mapping[Role, int] = dict.fromkeys(WORKER_ROLES, 0)
        step = Rollout(none, {role: wanted[role] for role in WORKER_ROLES}, routers_on_target=False, is_complete=False)
        return _State(wanted, serving, workloads, step, is_complete=False)
    was_complete = serving is None and observed.status.revision == target.hash
    step = rollout(
        {role: wanted[role] for role in WORKER_ROLES},
        {role: workloads.get((role, target.hash), Workload()).ready for role in WORKER_ROLES},
        has_serving=serving is not None,
        same_model=serving is None or serving.model == target.model,
        routers_moved=was_complete or _routers_moved(subject.parent, observed, target, now),
    )
    return _State(wanted, serving, workloads, step, is_complete=step.is_complete or was_complete)


def _serving(observed: Observed, workloads: Mapping[tuple[Role, str], Workload], target_hash: str) -> Revision | None:
    """The revision beside the target that must not be touched yet: the one that was complete last, else (the status is
    gone) the one with most pods ready in both pools."""
    if observed.status.revision == target_hash and target_hash:
        return None

    def ready(revision: Revision) -> int:
        return min(workloads.get((role, revision.hash), Workload()).ready for role in WORKER_ROLES)

    stored = [stored_revision(found.manifest()) for found in observed.of_kind("ControllerRevision")]
    others = [revision for revision in stored if revision is not None and revision.hash != target_hash]
    for revision in others:
        if revision.hash == observed.status.revision:
            return revision
    return max((revision for revision in others if ready(revision)), key=ready, default=None)


def _routers_moved(parent: Parent, observed: Observed, target: Revision, now: str) -> bool:
    """Whether every router runs with the target's settings. One that is ending still takes requests for some seconds,
    and knows only the workers it began with; one whose grace is over is on a node that does not answer."""
    if _router_ends(observed, now):
        return False
    found = observed.objects.get(("Deployment", names.workload_name(parent.name, "router", target.hash)))
    if found is None or found.workload is None or not found.workload.is_rolled_out:
        return False
    return covers(found.manifest()["spec"]["template"], target.router)


def _router_ends(observed: Observed, now: str) -> list[str]:
    """When the grace of each ending router is over."""
    return [pod.ends_at for pod in observed.pods if pod.role == "router" and now < pod.ends_at]


def _objects(subject: Subject, observed: Observed, state: _State) -> list[Manifest]:
    """Every object that should exist, beside the LLMPools; empty when nothing can be rendered."""
    parent, target, serving, step = subject.parent, subject.target, state.serving, state.step
    on_routers = target if target is not None and step.routers_on_target else serving
    if on_routers is None:
        return []
    revisions = [(target, step.target), (serving, {} if step.is_complete else step.serving)]
    running = [(revision, replicas) for revision, replicas in revisions if revision is not None and replicas]
    objects = [render.controller_revision(parent, revision) for revision, _ in running]
    objects.append(render.network_policy(parent))
    objects += _disruption_budgets(subject, observed, state)
    for role in WORKER_ROLES:
        for revision, replicas in running:
            objects += render.workers(parent, role, revision, replicas[role])
    service_type, account = subject.spec.router.service_type, _remade_account(parent, observed)
    return objects + render.router(parent, on_routers, state.wanted["router"], service_type, account=account)


def _remade_account(parent: Parent, observed: Observed) -> str:
    """The uid of the router's ServiceAccount if that is younger than the router: the tokens of its pods are void then,
    and without one a router never hears of new workers."""
    name = names.pool_name(parent.name, "router")
    account, deployment = observed.get("ServiceAccount", name), observed.get("Deployment", name)
    if account is None or deployment is None:
        return ""
    is_younger = _created(account) > _created(deployment)
    return str(account["metadata"]["uid"]) if is_younger else ""


def _created(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("creationTimestamp", ""))


def _disruption_budgets(subject: Subject, observed: Observed, state: _State) -> list[Manifest]:
    """One pod alone may be evicted: a budget for it would only be one object more. While the first pods start there is
    nothing to keep up yet, and Kubernetes would write a budget's status anew for each of them."""
    is_up = state.is_complete or state.serving is not None
    budgets = [render.disruption_budget(subject.parent, role) for role in ROLES if state.wanted[role] > 1]
    return [budget for budget in budgets if is_up or (budget["kind"], budget["metadata"]["name"]) in observed.objects]


def _secret(observed: Observed) -> list[Action]:
    """The Secret cannot be observed: it is made before the first worker, and when a pod misses it."""
    is_missed = any(pod.problem and pod.problem.reason == "ContainerConfigInvalid" for pod in observed.pods)
    has_workers = any(workload.revision for workload in observed.workloads)
    return [] if has_workers and not is_missed else [CreateSecret()]


def _change(manifest: Manifest, observed: Observed) -> Action | None:
    """What makes `manifest` true; None when it is."""
    found = observed.objects.get((manifest["kind"], manifest["metadata"]["name"]))
    if found is None:
        return Create(render.as_new(manifest))
    if found.is_deleting or _is_foreign(manifest["metadata"]["ownerReferences"][0]["uid"], found):
        return None
    return None if found.covers(manifest) else Apply(manifest, found.uid)


def _leftovers(objects: list[Manifest], observed: Observed) -> list[Action]:
    """Owned objects that should not exist (any more): those of revisions that are gone, first of all."""
    wanted = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in objects}
    parent_uid = objects[0]["metadata"]["ownerReferences"][0]["uid"]
    return [
        Delete(found.kind, found.name, found.uid)
        for key, found in sorted(observed.objects.items())
        if key not in wanted and found.kind != "LLMPool" and found.owner_uid == parent_uid and not found.is_deleting
    ]


def _status(subject: Subject, observed: Observed, state: _State, now: str) -> api.Status:
    ready, existing = _totals(state)
    target, old = subject.target, observed.status
    revision = target.hash if target is not None and state.is_complete else old.revision
    facts = Facts(
        wanted=state.wanted,
        ready=ready,
        existing=existing,
        pods=observed.pods,
        pod_failures=sorted(status.failure for status in state.workloads.values() if status.failure),
        target=target.hash if target else "",
        serving=revision,
        is_complete=state.is_complete,
        spec_error=subject.spec_error,
        refusals=observed.refusals,
        verification=observed.verification,
        fetching=observed.fetching,
        drift=observed.drift,
        has_service=("Service", subject.parent.name) in observed.objects,
    )

    def count(role: Role) -> api.PoolCount:
        wanted, have = state.wanted[role], ready[role]
        return api.PoolCount(replicas=wanted, ready=have, summary=f"{have}/{wanted}")

    return api.Status(
        observed_generation=subject.generation,
        conditions=conditions(facts, old.conditions, subject.generation, now),
        url=names.url_of(subject.parent.name, subject.parent.namespace),
        model=served_name(subject.spec.model),
        revision=revision,
        next_revision=target.hash if target is not None and target.hash != revision else "",
        prefill=count("prefill"),
        decode=count("decode"),
        router=count("router"),
    )


def _totals(state: _State) -> tuple[dict[Role, int], dict[Role, int]]:
    """Ready and existing pods per role, of all revisions."""
    ready, existing = dict.fromkeys(ROLES, 0), dict.fromkeys(ROLES, 0)
    for (role, _), status in state.workloads.items():
        ready[role] += status.ready
        existing[role] += status.replicas
    return ready, existing


def _pool_statuses(subject: Subject, observed: Observed, state: _State, revision: str) -> list[Action]:
    """What autoscalers read. Pods that are merely starting are told of when they have started: a burst of new
    deployments would else make three times as many writes."""
    ready, existing = _totals(state)
    actions: list[Action] = []
    if not state.is_complete and not observed.status.revision and not any(pod.problem for pod in observed.pods):
        return []
    for role in ROLES:
        found = observed.objects.get(("LLMPool", names.pool_name(subject.parent.name, role)))
        if found is None or _is_foreign(subject.parent.uid, found):
            continue
        status = api.PoolObjectStatus(
            replicas=existing[role],
            ready_replicas=ready[role],
            selector=",".join(f"{key}={value}" for key, value in names.selector(subject.parent.name, role).items()),
            revision=revision,
        )
        if not covers(found.manifest().get("status"), msgspec.to_builtins(status)):
            actions.append(WritePoolStatus(found.name, found.uid, status))
    return actions
