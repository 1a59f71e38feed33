"""How many workers of which revision: the pair of pools moves from one revision to the next, step by step. Pure.

Only workers of one revision exchange blocks, so both pools advance together and their ratio is kept. With an equal
model one step is one worker more of the new revision, then one less of the old. When the model changes, routers must
change too: the new revision is brought up whole beside the old one, then routers, and then the old one goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.operator.api import WORKER_ROLES, Role

Counts = Mapping[Role, int]


@dataclass(frozen=True)
class Rollout:
    """Replicas per role of the target revision and of the one that serves."""

    target: Counts
    serving: Counts
    routers_on_target: bool
    is_complete: bool


def rollout(wanted: Counts, ready: Counts, *, has_serving: bool, same_model: bool, routers_moved: bool) -> Rollout:
    """The step that follows from `ready`, the target revision's ready workers, and `wanted`, the workers in all.

    `routers_moved` says that all routers run with the target's settings and are ready.
    """
    none: Counts = dict.fromkeys(WORKER_ROLES, 0)
    steps = max(wanted[role] for role in WORKER_ROLES)
    done = next(
        step for step in range(steps, -1, -1) if all(ready[role] >= _part(wanted[role], step, steps) for role in wanted)
    )
    is_up = done == steps
    if not has_serving:
        return Rollout(dict(wanted), none, routers_on_target=True, is_complete=is_up and routers_moved)
    if not same_model:
        is_complete = is_up and routers_moved
        return Rollout(dict(wanted), none if is_complete else dict(wanted), is_up, is_complete)
    target = {role: _part(wanted[role], min(done + 1, steps), steps) for role in wanted}
    serving = {role: wanted[role] - _part(wanted[role], done, steps) for role in wanted}
    if any(serving.values()):  # one role of a revision is of no use without the other
        serving = {role: max(count, min(wanted[role], 1)) for role, count in serving.items()}
    return Rollout(target, serving, routers_on_target=True, is_complete=is_up)


def _part(whole: int, step: int, steps: int) -> int:
    """The part of `whole` that `step` of `steps` brings, rounded up."""
    return -(-whole * step // steps) if steps else 0
