"""Why pods wait that do not say it stands in the conditions, after a while and only as long as they wait."""

import asyncio
from typing import Any

import msgspec
import pytest

from penstock.operator import waiting
from penstock.operator.client import ApiUnavailable
from penstock.operator.problems import Pod, Problem
from penstock.operator.store import Store
from penstock.operator.waiting import Waiting

KEY = ("default", "demo")
MOUNT = {"reason": "FailedMount", "message": 'MountVolume.SetUp failed for volume "more" : secret "nowhere" not found'}
LATE = {"reason": "FailedMount", "message": "Unable to attach or mount volumes: timed out waiting for the condition"}
FULL = {"reason": "FailedScheduling", "message": "0/1 nodes are available"}
PROBE = {"reason": "Unhealthy", "message": "Readiness probe failed: HTTP probe failed with statuscode: 404"}
STARTUP = {"reason": "Unhealthy", "message": "Startup probe failed: connection refused"}


def pod(name: str, role: str = "decode", *, started: bool | None = None, ready: bool = False) -> Pod:
    """On a node; `started` None: its container is still being created."""
    labels = {"serving.penstock.dev/deployment": "demo", "serving.penstock.dev/role": role}
    state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}} if started is None else {"running": {}}
    status = {
        "phase": "Pending" if started is None else "Running",
        "conditions": [{"type": "Ready", "status": str(ready)}],
        "containerStatuses": [{"name": "worker", "ready": ready, "started": bool(started), "state": state}],
    }
    metadata = {"name": name, "namespace": "default", "labels": labels}
    return msgspec.convert({"metadata": metadata, "spec": {"nodeName": "one"}, "status": status}, Pod)


class Events:
    """A client that knows one thing: the events of pods."""

    def __init__(self, *events: dict[str, str]) -> None:
        self.events = events
        self.asked: list[str] = []

    async def get(self, path: str, **query: Any) -> Any:
        assert path == "/api/v1/namespaces/default/events"
        self.asked.append(query["fieldSelector"])
        if not self.events:
            raise ApiUnavailable("no answer")
        metadata = {"name": "x", "namespace": "default"}
        items = [
            event | {"metadata": metadata | {"resourceVersion": str(version)}}
            for version, event in enumerate(self.events, start=8)
        ]
        return {"items": items}


@pytest.fixture
def store() -> Store:
    store = Store(lambda _: None)
    metadata = {"name": "demo", "namespace": "default", "uid": "1", "resourceVersion": "1"}
    store.put_deployment({"metadata": metadata, "spec": {}})
    return store


def look(events: Events, store: Store, monkeypatch: pytest.MonkeyPatch, rounds: int = 3) -> None:
    """Until `rounds` questions were asked, or time enough for them was."""
    monkeypatch.setattr(waiting, "PAUSE_S", 0.001)
    monkeypatch.setattr(waiting, "PATIENCE_S", 0.01)

    async def run() -> None:
        task = asyncio.create_task(Waiting(events, store).run())  # type: ignore[arg-type]
        for _ in range(200):
            await asyncio.sleep(0.002)
            if len(events.asked) >= rounds:
                break
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def problems(store: Store) -> dict[str, Problem | None]:
    return {pod.name: pod.problem for pod in store.observe(KEY).pods}


def test_a_volume_that_cannot_be_mounted_is_told_in_the_nodes_words(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_pod(pod("b"))
    store.put_pod(pod("a"))
    events = Events(MOUNT, LATE, FULL)
    look(events, store, monkeypatch)
    assert set(events.asked) == {"involvedObject.name=a,type=Warning"}, "one pod is asked about"
    problem = problems(store)["a"]
    assert problem is not None
    assert problem.reason == "PodCannotStart"
    assert problem.message.endswith('secret "nowhere" not found')
    assert problems(store)["b"] is None
    store.drop_pod("default", "a")
    assert problems(store) == {"b": None}


@pytest.mark.parametrize("events", [Events(FULL), Events()])
def test_a_pod_whose_image_is_large_has_no_problem(
    store: Store, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    store.put_pod(pod("a"))
    look(events, store, monkeypatch)
    assert events.asked
    assert problems(store) == {"a": None}


def test_a_probe_that_goes_on_failing_is_told_and_forgotten_when_the_pod_is_ready(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_pod(pod("a", started=True))
    look(Events(PROBE, STARTUP), store, monkeypatch)
    problem = problems(store)["a"]
    assert problem is not None
    assert problem.message == f"a pod runs and is not ready: {PROBE['message']}"
    assert not problem.is_lasting
    store.put_pod(pod("a", started=True, ready=True))
    assert problems(store) == {"a": None}


def test_a_router_is_asked_about_only_when_it_has_a_worker(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_pod(pod("r", "router", started=True))
    events = Events(PROBE)
    look(events, store, monkeypatch)
    assert not events.asked
    store.put_pod(pod("d", "decode", started=True, ready=True))
    look(events, store, monkeypatch)
    assert problems(store)["r"] is not None
    assert problems(store)["d"] is None


def test_pods_that_start_in_time_cost_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_pod(pod("a"))
    store.put_pod(pod("a", started=False))
    store.put_pod(pod("a", started=True, ready=True))
    events = Events(PROBE)
    look(events, store, monkeypatch)
    assert not events.asked
