"""From a pod's status to a reason a person can act on. The statuses are as a real cluster wrote them."""

from typing import Any

import msgspec
import pytest

from penstock.operator.problems import Pod, Problem, problem_of, state_of, wait_of


def pod(**status: Any) -> Pod:
    labels = {"serving.penstock.dev/role": "prefill", "serving.penstock.dev/revision": "abc"}
    metadata = {"name": "demo-prefill-abc-x", "namespace": "default", "uid": "1", "labels": labels}
    return msgspec.convert({"metadata": metadata, "status": status}, Pod)


def container(name: str = "worker", **state: Any) -> dict[str, Any]:
    return {"name": name, "image": "penstock/worker:1", "ready": False, "restartCount": 1} | state


def found(**status: Any) -> Problem:
    problem = problem_of(pod(**status))
    assert problem is not None
    return problem


def test_no_node_fits() -> None:
    words = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    problem = found(phase="Pending", conditions=[condition])
    assert problem.reason == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in problem.message


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"])
def test_image_cannot_be_pulled(reason: str) -> None:
    waiting = {"waiting": {"reason": reason, "message": 'Back-off pulling image "penstock/worker:1"'}}
    problem = found(containerStatuses=[container(state=waiting)])
    assert problem.reason == "ImagePullFailed"
    assert problem.message.startswith("image penstock/worker:1 cannot be pulled: Back-off")


def test_out_of_memory() -> None:
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    problem = found(containerStatuses=[container(lastState=last)])
    assert problem.reason == "OutOfMemory"
    assert "resources.limits.memory" in problem.message


def test_model_not_found_by_the_worker() -> None:
    said = "loading\npenstock: there is no folder /models/none (file:///models/none)\n"
    last = {"terminated": {"exitCode": 2, "reason": "Error", "message": said}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
    problem = found(containerStatuses=[container(lastState=last, state=waiting)])
    assert problem.reason == "ModelNotFound"
    assert problem.message == "there is no folder /models/none (file:///models/none)"


def test_model_not_fetched_by_the_init_container() -> None:
    state = {"terminated": {"exitCode": 1, "message": "hf://org/none@main: there is no such repository"}}
    problem = found(initContainerStatuses=[container("fetch-model", state=state)])
    assert problem.reason == "ModelNotFound"
    assert "hf://org/none" in problem.message


def test_a_crash_loop_shows_the_last_line() -> None:
    last = {"terminated": {"exitCode": 1, "message": "Traceback\n  File x\nRuntimeError: cuda is gone\n\n"}}
    problem = found(containerStatuses=[container(lastState=last)])
    assert problem.reason == "CrashLoop"
    assert problem.message.endswith("RuntimeError: cuda is gone")


def test_a_container_that_ends_well_again_and_again_is_a_crash_loop_too() -> None:
    ended = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
    problem = found(containerStatuses=[container(lastState=ended, state=waiting)])
    assert problem.reason == "CrashLoop"
    assert "exit status 0" in problem.message
    assert problem_of(pod(initContainerStatuses=[container("fetch-model", state=ended)])) is None


def test_a_missing_secret_is_named() -> None:
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "demo-hash" not found'}}
    problem = found(containerStatuses=[container(state=waiting)])
    assert (problem.reason, problem.message) == (
        "ContainerConfigInvalid",
        'container worker: secret "demo-hash" not found',
    )


def test_a_pod_that_was_ended_from_outside_says_by_what() -> None:
    problem = found(phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    assert problem.reason == "PodFailed"
    assert problem.message == "a pod failed: Evicted: The node was low on resource: memory."
    assert found(phase="Failed").message == "a pod failed: without a reason"


def test_a_pod_that_merely_starts_has_no_problem() -> None:
    waiting = {"waiting": {"reason": "ContainerCreating"}}
    assert problem_of(pod(phase="Pending", containerStatuses=[container(state=waiting, restartCount=0)])) is None


def test_a_pod_that_is_ready_again_has_no_problem() -> None:
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    ready = {"type": "Ready", "status": "True"}
    state = state_of(pod(conditions=[ready], containerStatuses=[container(ready=True, lastState=last)]))
    assert state.is_ready
    assert state.problem is None


def test_messages_do_not_differ_from_pod_to_pod() -> None:
    texts = [f"back-off 10s restarting failed container=worker pod=x_{n} in pod demo-{n}_default({n})" for n in (1, 2)]
    waiting = [{"waiting": {"reason": "RunContainerError", "message": text.split(" pod=")[0]}} for text in texts]
    assert len({found(containerStatuses=[container(state=state)]).message for state in waiting}) == 1


def test_long_messages_are_cut() -> None:
    last = {"terminated": {"exitCode": 1, "message": "x" * 5000}}
    assert len(found(containerStatuses=[container(lastState=last)]).message) < 600


NODE: dict[str, Any] = {"nodeName": "one"}
CREATING: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
INITIALIZING: dict[str, Any] = {"waiting": {"reason": "PodInitializing"}}
RUNNING: dict[str, Any] = {"running": {}}


@pytest.mark.parametrize(
    ("wait", "spec", "status"),
    [
        (None, {}, {"phase": "Pending"}),
        ("containers", NODE, {"phase": "Pending"}),
        ("containers", NODE, {"phase": "Pending", "containerStatuses": [container(state=CREATING)]}),
        (
            None,
            NODE,
            {
                "phase": "Pending",
                "initContainerStatuses": [container("fetch-model", state=RUNNING)],
                "containerStatuses": [container(state=INITIALIZING)],
            },
        ),
        (None, NODE, {"phase": "Running", "containerStatuses": [container(state=RUNNING, started=False)]}),
        ("readiness", NODE, {"phase": "Running", "containerStatuses": [container(state=RUNNING, started=True)]}),
        (
            None,
            NODE,
            {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": []},
        ),
        (
            None,
            NODE,
            {"phase": "Pending", "containerStatuses": [container(state={"waiting": {"reason": "ErrImagePull"}})]},
        ),
    ],
)
def test_what_a_pod_waits_for_without_a_word(wait: str | None, spec: dict[str, Any], status: dict[str, Any]) -> None:
    found = pod(**status)
    found.spec.node_name = spec.get("nodeName", "")
    assert wait_of(found) == wait
