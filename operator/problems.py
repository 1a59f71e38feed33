"""From a pod's status to what a person can do about it. Pure.

`Pod` holds only what is read: a deployment may have a thousand of them, and each changes five times while it starts.
"""

import re
from typing import Literal, TypeAlias

from msgspec import Struct, field

from penstock.operator import names
from penstock.operator.model_pod import FETCH_CONTAINER


class Problem(Struct, frozen=True, order=True):
    """Why a pod does not serve; `rank` orders by how much the problem explains."""

    rank: int
    reason: str
    message: str
    is_lasting: bool = True
    """Waiting will not help."""


class Metadata(Struct, rename="camel"):
    name: str
    namespace: str
    uid: str = ""
    labels: dict[str, str] = {}
    resource_version: str = ""
    generation: int = 0
    deletion_timestamp: str | None = None


class _Terminated(Struct, frozen=True, rename="camel"):
    exit_code: int = 0
    reason: str = ""
    message: str = ""


class _Waiting(Struct, frozen=True):
    reason: str = ""
    message: str = ""


class _Running(Struct, frozen=True):
    pass


class _State(Struct, frozen=True):
    running: _Running | None = None
    waiting: _Waiting | None = None
    terminated: _Terminated | None = None


class _Container(Struct, rename="camel"):
    name: str
    ready: bool = False
    started: bool = False
    restart_count: int = 0
    image: str = ""
    state: _State = _State()
    last_state: _State = _State()


class _Condition(Struct):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class _PodStatus(Struct, rename="camel"):
    phase: str = ""
    pod_ip: str = field(default="", name="podIP")
    reason: str = ""
    message: str = ""
    conditions: list[_Condition] = []
    container_statuses: list[_Container] = []
    init_container_statuses: list[_Container] = []


class _PodSpec(Struct, rename="camel"):
    node_name: str = ""


class Pod(Struct):
    """A pod as the operator reads it."""

    metadata: Metadata
    spec: _PodSpec = field(default_factory=_PodSpec)
    status: _PodStatus = field(default_factory=_PodStatus)

    @property
    def is_ready(self) -> bool:
        return self.metadata.deletion_timestamp is None and any(
            condition.type == "Ready" and condition.status == "True" for condition in self.status.conditions
        )


class PodState(Struct, frozen=True):
    """What is kept of a pod."""

    name: str
    role: str
    revision: str
    is_ready: bool
    problem: Problem | None
    is_fetching: bool = False
    """Its init container is fetching the model."""
    ends_at: str = ""
    """When its grace is over (RFC 3339), if it is being deleted."""
    address: str = ""
    """Of a router that is ready: the operator asks it (predictions.py)."""


Wait: TypeAlias = Literal["containers", "readiness"]
"""What a pod waits for without a word in its status: that its containers can be made, or to become ready."""

POD_FAILED = "PodFailed"
_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_NO_MODEL = re.compile(
    r"there is no folder|no model folder|has no config\.json|is not mounted|cannot be fetched|no such repository"
    r"|needs a token|no tokenizer\.json|names no ",
)


def state_of(pod: Pod) -> PodState:
    """The part of a pod that conditions are made of."""
    labels = pod.metadata.labels
    problem = None if pod.is_ready or pod.metadata.deletion_timestamp else problem_of(pod)
    is_fetching = any(
        container.name == FETCH_CONTAINER and container.state.running is not None
        for container in pod.status.init_container_statuses
    )
    role, revision = labels.get(names.ROLE, ""), labels.get(names.REVISION, "")
    ends_at = pod.metadata.deletion_timestamp or ""
    address = pod.status.pod_ip if role == "router" and pod.is_ready else ""
    return PodState(pod.metadata.name, role, revision, pod.is_ready, problem, is_fetching, ends_at, address)


def wait_of(pod: Pod) -> Wait | None:
    """What a pod waits for that has no problem which its status tells."""
    if pod.is_ready or pod.metadata.deletion_timestamp or problem_of(pod) is not None:
        return None
    containers = pod.status.container_statuses
    if pod.status.phase == "Running":
        return "readiness" if all(container.started for container in containers) else None
    states = [container.state for container in (*pod.status.init_container_statuses, *containers)]
    has_begun = any(state.running or state.terminated for state in states)
    return "containers" if pod.spec.node_name and not has_begun else None


def problem_of(pod: Pod) -> Problem | None:
    """The worst thing about a pod that is not ready; None while it simply starts."""
    found = [problem for problem in _problems(pod) if problem is not None]
    return max(found, default=None)


def _problems(pod: Pod) -> list[Problem | None]:
    status = pod.status
    containers = [*status.init_container_statuses, *status.container_statuses]
    return [
        *(_unschedulable(condition) for condition in status.conditions),
        *(_waits(container) for container in containers),
        *(_ended(container) for container in containers),
        _failed(status),
    ]


def _failed(status: _PodStatus) -> Problem | None:
    """The whole pod: evicted, refused by its node, its node shut down."""
    if status.phase != "Failed":
        return None
    said = ": ".join(filter(None, (status.reason, sentence(status.message)))) or "without a reason"
    return Problem(2, POD_FAILED, f"a pod failed: {said}", is_lasting=False)


def _unschedulable(condition: _Condition) -> Problem | None:
    if condition.type == "PodScheduled" and condition.status == "False" and condition.reason == "Unschedulable":
        return Problem(5, "Unschedulable", f"no node fits: {sentence(condition.message)}")
    return None


def _waits(container: _Container) -> Problem | None:
    waiting = container.state.waiting
    if waiting is None:
        return None
    if waiting.reason in _PULL:
        said = sentence(waiting.message) or waiting.reason
        return Problem(6, "ImagePullFailed", f"image {container.image} cannot be pulled: {said}")
    if waiting.reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        return Problem(5, "ContainerConfigInvalid", f"container {container.name}: {sentence(waiting.message)}")
    return None


def _ended(container: _Container) -> Problem | None:
    """A container that failed and is not well again, or that ends again and again without a failure."""
    ended = container.state.terminated or container.last_state.terminated
    is_looping = container.state.waiting is not None and container.state.waiting.reason == "CrashLoopBackOff"
    if ended is None or container.ready or (ended.exit_code == 0 and not is_looping):
        return None
    last = _last_line(ended.message)
    if ended.reason == "OOMKilled":
        return Problem(
            7,
            "OutOfMemory",
            f"container {container.name} was killed for using more memory than its limit; raise resources.limits.memory"
            " or lower kvCache.size",
        )
    if container.name in (FETCH_CONTAINER, "copy-model") or _NO_MODEL.search(last):
        return Problem(8, "ModelNotFound", last or f"container {container.name} ended with {ended.exit_code}")
    said = last or f"exit status {ended.exit_code}, and it said nothing"
    return Problem(4, "CrashLoop", f"container {container.name} ends again and again: {said}")


def _last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return sentence(lines[-1].removeprefix("penstock: ")) if lines else ""


def sentence(text: str, longest: int = 500) -> str:
    """One line, not too long. Pod names in back-off messages differ from pod to pod, which must not look like news."""
    line = re.sub(r" in pod \S+", "", " ".join(text.split()))
    return line if len(line) <= longest else line[: longest - 1] + "…"
