"""Revisions replace each other in pairs, without a moment of less capacity, and only when the new one works."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.operator import api
from penstock.operator.observed import Observed
from penstock.operator.problems import PodState, Problem
from penstock.operator.rollout import rollout
from tests.operator.world import World, spec, upgraded

OTHER_MODEL = api.Model(uri="pvc://models/other")
MISSING = Problem(8, "ModelNotFound", "there is no folder /mnt/penstock/claims/models/other")


@pytest.fixture
def world() -> World:
    world = World(spec=spec(prefill=api.Pool(replicas=2, gpus=0), decode=api.Pool(replicas=4, gpus=0)))
    world.settle()
    return world


def test_a_new_image_is_rolled_out_step_by_step_with_the_ratio_kept(world: World) -> None:
    old = world.status.revision
    world.config = upgraded(world)
    seen = []
    for _ in range(60):
        if not world.step():
            break
        world.run_pods()
        assert world.ready("prefill") >= 2
        assert world.ready("decode") >= 4
        seen.append({revision[:4]: counts for revision, counts in world.replicas().items()})
    new = world.status.revision
    assert new != old
    assert world.replicas() == {new: {"prefill": 2, "decode": 4}}
    both = [counts for counts in seen if len(counts) == 2]
    assert max(sum(counts[revision]["decode"] for revision in counts) for counts in both) <= 5
    assert {counts[old[:4]]["decode"] for counts in both} >= {4, 3, 2, 1}
    assert len(world.of_kind("ControllerRevision")) == 1


def test_another_model_comes_up_whole_before_routers_and_the_old_one_move(world: World) -> None:
    old = world.status.revision
    world.change(spec(model=OTHER_MODEL, prefill=world.spec.prefill, decode=world.spec.decode))
    world.step()
    new = world.status.next_revision
    assert world.replicas() == {old: {"prefill": 2, "decode": 4}, new: {"prefill": 2, "decode": 4}}
    router = world.objects["ConfigMap", "demo-router"]["data"]["PENSTOCK_FLAG_MODEL"]
    assert router == "file:///models/penstock-demo"
    world.run_pods()
    world.step()
    assert world.objects["ConfigMap", "demo-router"]["data"]["PENSTOCK_FLAG_MODEL"] == "pvc://models/other"
    assert old in world.replicas()
    world.settle()
    assert list(world.replicas()) == [new]
    assert world.status.revision == new


def test_workers_of_another_model_stay_until_the_last_router_that_knows_them_has_ended(world: World) -> None:
    old = world.status.revision
    world.change(spec(model=OTHER_MODEL, prefill=world.spec.prefill, decode=world.spec.decode))
    world.ending = [PodState("router", "router", "", False, None, ends_at="2026-11-21T03:00:40Z")]
    world.settle()
    assert old in world.replicas(), "an ending router takes requests still"
    assert world.plan().look_again_at == "2026-11-21T03:00:40Z"
    world.ending = [PodState("router", "router", "", False, None, ends_at="2026-11-21T02:59:59Z")]  # its node is gone
    world.settle()
    assert old not in world.replicas()
    assert not world.plan().look_again_at


def test_a_revision_that_cannot_work_leaves_the_running_one_and_says_why(world: World) -> None:
    old = world.status.revision
    serving = world.replicas()[old]
    world.change(spec(model=OTHER_MODEL, prefill=world.spec.prefill, decode=world.spec.decode))
    world.step()
    world.broken[world.status.next_revision] = MISSING
    world.settle()
    assert world.replicas()[old] == serving
    assert world.status.revision == old
    assert world.condition("Ready").status == "True"
    progressing = world.condition("Progressing")
    assert (progressing.status, progressing.reason) == ("False", "ModelNotFound")
    assert "there is no folder" in progressing.message
    assert f"revision {old} goes on serving" in progressing.message
    assert world.condition("Degraded").status == "True"


def test_the_running_revision_is_repaired_while_the_new_one_is_broken(world: World) -> None:
    old = world.status.revision
    world.change(spec(model=OTHER_MODEL, prefill=world.spec.prefill, decode=world.spec.decode))
    world.step()
    world.broken[world.status.next_revision] = MISSING
    world.settle()
    expected = world.snapshot()
    del world.objects["Deployment", f"demo-decode-{old}"]
    del world.objects["Deployment", "demo-router"]
    world.settle()
    assert world.snapshot() == expected


def test_going_back_removes_the_broken_revision(world: World) -> None:
    expected, before = world.snapshot(), world.spec
    world.change(spec(model=OTHER_MODEL, prefill=world.spec.prefill, decode=world.spec.decode))
    world.step()
    world.broken[world.status.next_revision] = MISSING
    world.settle()
    world.change(before)
    world.settle()
    assert world.snapshot() == expected
    assert world.condition("Degraded").status == "False"


def test_a_third_revision_removes_a_broken_second_at_once_and_keeps_the_first(world: World) -> None:
    first = world.status.revision
    world.change(spec(model=OTHER_MODEL, prefill=world.spec.prefill, decode=world.spec.decode))
    world.step()
    second = world.status.next_revision
    world.broken[second] = MISSING
    world.settle()
    world.config = upgraded(world)
    world.change(spec(prefill=world.spec.prefill, decode=world.spec.decode))
    world.step()
    assert first in world.replicas()
    assert second not in world.replicas()
    world.settle()
    assert world.condition("Ready").status == "True"
    assert len(world.replicas()) == 1


def test_a_lost_status_does_not_take_the_serving_revision_down(world: World) -> None:
    old = world.status.revision
    world.change(spec(model=OTHER_MODEL, prefill=world.spec.prefill, decode=world.spec.decode))
    world.step()
    world.broken[world.status.next_revision] = MISSING
    world.run_pods()
    world.status = api.Status()
    world.step()
    assert world.replicas()[old] == {"prefill": 2, "decode": 4}


def test_a_broken_first_revision_is_replaced_by_a_working_one() -> None:
    world = World(spec=spec(model=OTHER_MODEL))
    world.step()
    first = world.status.next_revision
    world.broken[first] = MISSING
    world.settle()
    assert world.condition("Ready").status == "False"
    assert world.condition("Ready").reason == "ModelNotFound"
    world.change(spec())
    world.settle()
    assert first not in world.replicas()
    assert world.condition("Ready").status == "True"


def test_a_changed_router_leaves_the_workers_alone(world: World) -> None:
    old = world.status.revision
    router = api.Router(replicas=1, template={"spec": {"priorityClassName": "high"}})
    world.change(spec(router=router, prefill=world.spec.prefill, decode=world.spec.decode))
    world.settle()
    assert list(world.replicas()) == [old]
    assert world.objects["Deployment", "demo-router"]["spec"]["template"]["spec"]["priorityClassName"] == "high"
    assert len(world.of_kind("ControllerRevision")) == 1


def test_nothing_observed_is_nothing_serving() -> None:
    assert Observed().status.revision == ""


def test_a_revision_keeps_a_worker_of_each_role_for_as_long_as_it_has_any() -> None:
    wanted: dict[api.Role, int] = {"prefill": 1, "decode": 8}
    ready: dict[api.Role, int] = {"prefill": 1, "decode": 1}
    step = rollout(wanted, ready, has_serving=True, same_model=True, routers_moved=False)
    assert step.serving == {"prefill": 1, "decode": 7}
    ready["decode"] = 8
    step = rollout(wanted, ready, has_serving=True, same_model=True, routers_moved=False)
    assert step.serving == {"prefill": 0, "decode": 0}


counts = st.integers(0, 12)


@given(prefill=counts, decode=counts, ready_prefill=counts, ready_decode=counts, same_model=st.booleans())
def test_each_step_keeps_capacity_and_respects_the_surge(
    prefill: int, decode: int, ready_prefill: int, ready_decode: int, same_model: bool
) -> None:
    wanted: dict[api.Role, int] = {"prefill": prefill, "decode": decode}
    ready: dict[api.Role, int] = {"prefill": min(ready_prefill, prefill), "decode": min(ready_decode, decode)}
    step = rollout(wanted, ready, has_serving=True, same_model=same_model, routers_moved=False)
    for role, count in wanted.items():
        assert ready[role] + step.serving.get(role, 0) >= count, "less capacity than wanted"
        if same_model:
            assert step.target[role] + step.serving[role] <= count + 1 + (max(wanted.values()) > count), "surge"
    if same_model and max(wanted.values()) and not step.is_complete:
        grows = any(step.target[role] > ready[role] for role in wanted)
        shrinks = any(step.serving[role] < wanted[role] for role in wanted)
        assert len({step.serving[role] > 0 for role in wanted if wanted[role]}) == 1, "half of a pair serves nobody"
        assert grows or shrinks, "the rollout would stand still"
