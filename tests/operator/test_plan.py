"""One LLMDeployment becomes what it should, and stays so, whatever is done to its objects."""

import copy

import msgspec
import pytest

from penstock.operator import api, names
from penstock.operator.actions import Apply, Create, CreateSecret, Delete, Rescale, Seed, WriteStatus
from penstock.operator.observed import Verification
from penstock.operator.plan import Subject, plan
from penstock.operator.render import Parent
from tests.operator.world import NOW, World, spec


@pytest.fixture
def world() -> World:
    """A deployment that serves."""
    world = World()
    world.settle()
    return world


def test_the_first_look_makes_everything_and_says_starting() -> None:
    world = World()
    world.step()
    kinds = sorted(kind for kind, _ in world.objects)
    assert kinds == sorted(
        ["LLMPool"] * 3
        + ["Deployment"] * 3
        + ["Service"] * 3
        + ["ControllerRevision", "NetworkPolicy", "ServiceAccount", "Role", "RoleBinding", "ConfigMap"]
    )
    assert world.secrets == 1
    ready = world.condition("Ready")
    assert (ready.status, ready.reason) == ("Unknown", "Starting")
    assert [condition.type for condition in world.status.conditions] == [
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
    ]
    assert {condition.observed_generation for condition in world.status.conditions} == {1}


def test_budgets_for_evictions_come_with_the_first_complete_revision_and_stay() -> None:
    world = World()
    for _ in range(3):
        world.step()
    assert not world.of_kind("PodDisruptionBudget")
    world.settle()
    names_of_budgets = [budget["metadata"]["name"] for budget in world.of_kind("PodDisruptionBudget")]
    assert names_of_budgets == ["demo-prefill", "demo-decode"]
    world.status = api.Status()  # lost, and a pod is not ready
    prefill = next(m for m in world.of_kind("Deployment") if world.role_of(m) == "prefill")
    prefill["status"]["readyReplicas"] = 1
    world.step()
    assert len(world.of_kind("PodDisruptionBudget")) == 2
    world.change(spec(decode=api.Pool(replicas=1, gpus=0)))
    world.settle()
    assert len(world.of_kind("PodDisruptionBudget")) == 1


def test_when_all_pods_are_ready_it_is_ready(world: World) -> None:
    assert {kind: world.condition(kind).status for kind in ("Ready", "Progressing", "Scaling", "Degraded")} == {
        "Ready": "True",
        "Progressing": "False",
        "Scaling": "False",
        "Degraded": "False",
    }
    assert world.condition("KVTransferVerified").status == "Unknown"
    assert world.status.revision == next(iter(world.replicas()))
    assert world.status.prefill.summary == "2/2"
    assert world.status.url == "http://demo.default.svc/v1"


def test_a_settled_deployment_needs_no_action(world: World) -> None:
    assert world.plan().actions == ()


def test_every_object_belongs_to_the_parent_and_carries_its_labels(world: World) -> None:
    for manifest in world.objects.values():
        assert manifest["metadata"]["labels"][names.MANAGED_BY] == "penstock"
        assert manifest["metadata"]["labels"][names.DEPLOYMENT] == "demo"
        assert [owner["uid"] for owner in manifest["metadata"]["ownerReferences"]] == ["parent-1"]


def test_a_crash_after_any_action_converges_to_the_same_objects() -> None:
    whole = World()
    whole.settle()
    num_actions = len(World().plan().actions)
    assert num_actions > 15
    for crash_after in range(num_actions):
        world = World()
        for action in world.plan().actions[:crash_after]:
            world.do(action)
        world.settle()
        assert world.snapshot() == whole.snapshot(), f"crashed after {crash_after} actions"


def test_a_deleted_object_is_made_again(world: World) -> None:
    expected = world.snapshot()
    for key in list(world.objects):
        del world.objects[key]
        actions = world.step()
        assert any(isinstance(action, Create | Seed) for action in actions), key
        world.settle()
        assert world.snapshot() == expected, key


def test_an_edited_object_is_put_right(world: World) -> None:
    expected = world.snapshot()
    prefill = next(m for m in world.of_kind("Deployment") if world.role_of(m) == "prefill")
    prefill["spec"]["template"]["spec"]["containers"][0]["image"] = "evil/worker:1"
    world.objects["Service", "demo"]["spec"]["selector"] = {"app": "other"}
    world.objects["ConfigMap", "demo-router"]["data"].clear()
    world.objects["NetworkPolicy", "demo-workers"]["spec"]["ingress"].append({})
    del world.objects["PodDisruptionBudget", "demo-decode"]["metadata"]["labels"][names.ROLE]
    assert len([action for action in world.step() if isinstance(action, Apply)]) == 5
    world.settle()
    assert world.snapshot() == expected


def test_the_revision_number_of_a_deployment_is_given_once_and_then_is_kubernetes_own(world: World) -> None:
    number = "deployment.kubernetes.io/revision"
    fresh = [action.manifest for action in World().plan().actions if isinstance(action, Create)]
    assert [m["metadata"]["annotations"].get(number) for m in fresh if m["kind"] == "Deployment"] == ["1"] * 3
    assert not any(number in m["metadata"]["annotations"] for m in fresh if m["kind"] != "Deployment")
    for manifest in world.of_kind("Deployment"):
        manifest["metadata"]["annotations"][number] = "7"
    assert world.plan().actions == ()


def test_a_deployment_whose_labels_were_taken_gets_them_back(world: World) -> None:
    expected = world.snapshot()
    for prefill in world.of_kind("Deployment"):
        del prefill["metadata"]["labels"][names.ROLE]
    assert len([action for action in world.step() if isinstance(action, Apply)]) == 3
    world.settle()
    assert world.snapshot() == expected


def test_a_lost_annotation_costs_one_apply_and_changes_nothing(world: World) -> None:
    expected = world.snapshot()
    world.objects["Service", "demo"]["metadata"]["annotations"] = {}
    actions = world.step()
    assert [type(action) for action in actions] == [Apply]
    assert world.snapshot() == expected


def test_what_others_add_beside_ours_is_theirs(world: World) -> None:
    world.objects["Service", "demo"]["metadata"]["annotations"]["cloud.example/load-balancer"] = "x"
    world.objects["Service", "demo"]["spec"]["clusterIP"] = "10.0.0.7"
    assert world.plan().actions == ()


def test_objects_of_an_earlier_parent_are_left_to_the_garbage_collector(world: World) -> None:
    world.uid = "parent-2"
    world.status = api.Status()
    before = copy.deepcopy(world.objects)
    actions = world.step()
    assert not any(isinstance(action, Create | Apply | Seed | Delete | Rescale) for action in actions)
    assert {key: manifest["metadata"]["uid"] for key, manifest in world.objects.items()} == {
        key: manifest["metadata"]["uid"] for key, manifest in before.items()
    }
    world.objects.clear()
    world.settle()
    assert world.condition("Ready").status == "True"


def test_an_object_that_is_being_deleted_is_waited_for(world: World) -> None:
    world.objects["Service", "demo"]["metadata"]["deletionTimestamp"] = NOW
    world.objects["Service", "demo"]["spec"]["selector"] = {}
    assert world.plan().actions == ()


def test_replicas_scaled_through_the_pool_hold(world: World) -> None:
    world.objects["LLMPool", "demo-decode"]["spec"]["replicas"] = 5
    world.settle()
    assert world.replicas()[world.status.revision] == {"prefill": 2, "decode": 5}
    assert world.status.decode.summary == "5/5"
    assert world.objects["LLMPool", "demo-decode"]["spec"]["replicas"] == 5


def test_no_apply_of_a_pool_ever_names_its_replicas(world: World) -> None:
    world.objects["LLMPool", "demo-decode"]["spec"]["maxReplicas"] = 1
    applied = [action for action in world.plan().actions if isinstance(action, Apply)]
    assert [action.manifest["metadata"]["name"] for action in applied] == ["demo-decode"]
    assert "replicas" not in applied[0].manifest["spec"]
    assert "declaredReplicas" not in applied[0].manifest["spec"]


def test_changed_replicas_in_the_spec_take_effect_once(world: World) -> None:
    world.objects["LLMPool", "demo-decode"]["spec"]["replicas"] = 5
    world.settle()
    world.change(spec(decode=api.Pool(replicas=3, gpus=0)))
    assert any(isinstance(action, Rescale) for action in world.step())
    world.settle()
    assert world.replicas()[world.status.revision]["decode"] == 3
    world.objects["LLMPool", "demo-decode"]["spec"]["replicas"] = 7
    world.settle()
    assert world.replicas()[world.status.revision]["decode"] == 7


def test_replicas_outside_the_bounds_do_not_take_effect(world: World) -> None:
    bounded = api.Pool(replicas=2, gpus=0, scaling=api.Scaling(min_replicas=1, max_replicas=4))
    world.change(spec(decode=bounded))
    world.objects["LLMPool", "demo-decode"]["spec"]["replicas"] = 9
    world.settle()
    assert world.replicas()[world.status.revision]["decode"] == 4


def test_a_deleted_pool_comes_back_with_the_replicas_that_run(world: World) -> None:
    world.objects["LLMPool", "demo-decode"]["spec"]["replicas"] = 5
    world.settle()
    del world.objects["LLMPool", "demo-decode"]
    world.settle()
    assert world.objects["LLMPool", "demo-decode"]["spec"]["replicas"] == 5


def test_the_secret_is_made_again_when_a_pod_misses_it(world: World) -> None:
    from penstock.operator.problems import Problem

    assert not any(isinstance(action, CreateSecret) for action in world.plan().actions)
    world.broken[world.status.revision] = Problem(5, "ContainerConfigInvalid", 'secret "demo-hash" not found')
    world.run_pods()
    assert any(isinstance(action, CreateSecret) for action in world.step())


def test_a_spec_that_cannot_be_rendered_leaves_what_serves_and_says_why(world: World) -> None:
    expected = world.snapshot()
    world.generation = 2
    parent = Parent("demo", "default", world.uid)
    subject = Subject(parent, 2, world.spec, None, "hf://x names no repository")
    decided = plan(subject, world.observe(), NOW)
    for action in decided.actions:
        assert isinstance(action, WriteStatus)
        world.do(action)
    assert world.snapshot() == expected
    assert world.condition("Ready").status == "True"
    assert world.condition("Progressing").reason == "SpecInvalid"
    assert "names no repository" in world.condition("Degraded").message


def test_transfers_that_stop_working_are_a_condition(world: World) -> None:
    world.verification = Verification(True, "BlocksMoved", "KV blocks move between prefill and decode workers")
    world.settle()
    assert world.condition("KVTransferVerified").status == "True"
    world.verification = Verification(False, "TransfersFail", "KV blocks do not move from a to b")
    world.settle()
    assert world.condition("KVTransferVerified").status == "False"
    assert world.condition("Degraded").reason == "TransfersFail"
    assert world.condition("Ready").status == "True"


def test_unicode_and_foreign_annotations_of_objects_survive(world: World) -> None:
    world.objects["Service", "demo"]["metadata"]["annotations"]["note"] = "größer 日本語 🚰"
    assert world.plan().actions == ()


def test_plans_are_equal_for_equal_observations() -> None:
    left, right = World().plan(), World().plan()
    assert left == right
    assert msgspec.json.encode(left.status) == msgspec.json.encode(right.status)


def test_routers_start_anew_when_their_service_account_was_made_anew(world: World) -> None:
    """Kubernetes takes no token of an account that was deleted, not even when there is another of its name."""
    account, router = world.objects["ServiceAccount", "demo-router"], world.objects["Deployment", "demo-router"]
    account["metadata"]["creationTimestamp"] = router["metadata"]["creationTimestamp"] = "2026-11-21T03:00:00Z"
    before = copy.deepcopy(router["spec"]["template"])
    world.settle()
    assert world.objects["Deployment", "demo-router"]["spec"]["template"] == before
    del world.objects["ServiceAccount", "demo-router"]
    world.step()
    remade = world.objects["ServiceAccount", "demo-router"]["metadata"]
    remade["creationTimestamp"] = "2026-11-21T04:00:00Z"
    world.settle()
    after = world.objects["Deployment", "demo-router"]["spec"]["template"]
    assert after["metadata"]["annotations"] == before["metadata"]["annotations"] | {names.ACCOUNT: remade["uid"]}
    assert world.step() == ()
