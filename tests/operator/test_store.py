"""What the operator remembers: the newest sight of each object, by LLMDeployment."""

from typing import Any

import msgspec
import pytest

from penstock.operator.problems import Pod
from penstock.operator.store import Key, Store

DEMO = ("default", "demo")


@pytest.fixture
def news() -> list[Key]:
    return []


@pytest.fixture
def store(news: list[Key]) -> Store:
    return Store(news.append)


def service(version: int, *, uid: str = "1", deployment: str = "demo", **spec: Any) -> dict[str, Any]:
    labels = {"serving.penstock.dev/deployment": deployment}
    metadata = {"name": "demo", "namespace": "default", "uid": uid, "resourceVersion": str(version), "labels": labels}
    return {"kind": "Service", "metadata": metadata | {"managedFields": [{}]}, "spec": spec}


def deployment(version: int, uid: str = "p1") -> dict[str, Any]:
    metadata = {"name": "demo", "namespace": "default", "uid": uid, "resourceVersion": str(version), "generation": 1}
    return {"metadata": metadata, "spec": {"model": {"uri": "file:///models/x"}}}


def pod(*, ready: bool) -> Pod:
    labels = {"serving.penstock.dev/deployment": "demo", "serving.penstock.dev/role": "decode"}
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    body = {"metadata": {"name": "p", "namespace": "default", "labels": labels}, "status": {"conditions": conditions}}
    return msgspec.convert(body, Pod)


def test_an_older_sight_is_ignored(store: Store, news: list[Key]) -> None:
    store.put(service(5, type="new"))
    store.put(service(4, type="old"))
    assert store.observe(DEMO).get("Service", "demo")["spec"] == {"type": "new"}  # type: ignore[index]
    assert news == [DEMO]


def test_managed_fields_are_not_kept(store: Store) -> None:
    store.put(service(1))
    assert "managedFields" not in store.observe(DEMO).get("Service", "demo")["metadata"]  # type: ignore[index]


def test_owned_objects_are_counted_by_kind(store: Store) -> None:
    store.put(service(1))
    assert store.num_objects() == {"Service": 1}
    store.drop("Service", "default", "demo")
    assert store.num_objects() == {}


def test_a_late_deletion_does_not_take_the_new_object(store: Store) -> None:
    store.put(service(5, uid="2"))
    store.drop("Service", "default", "demo", uid="1")
    assert ("Service", "demo") in store.observe(DEMO).objects
    store.drop("Service", "default", "demo", uid="2")
    assert store.observe(DEMO).objects == {}


def test_an_object_whose_label_was_changed_moves(store: Store, news: list[Key]) -> None:
    store.put(service(1))
    store.put(service(2, deployment="other"))
    assert store.observe(DEMO).objects == {}
    assert ("Service", "demo") in store.observe(("default", "other")).objects
    assert news[-2:] == [DEMO, ("default", "other")]


def test_a_pod_without_news_makes_no_look(store: Store, news: list[Key]) -> None:
    store.put_pod(pod(ready=False))
    store.put_pod(pod(ready=False))
    assert news == []
    store.put_pod(pod(ready=True))
    assert news == [DEMO]
    assert store.observe(DEMO).pods[0].is_ready


def test_a_pod_whose_label_was_changed_moves_and_goes(store: Store) -> None:
    """For a look at it, out of the way."""
    store.put_pod(pod(ready=False))
    moved = pod(ready=False)
    moved.metadata.labels["serving.penstock.dev/deployment"] = "aside"
    store.put_pod(moved)
    assert store.observe(DEMO).pods == ()
    assert len(store.observe(("default", "aside")).pods) == 1
    store.drop_pod("default", "p")
    assert store.observe(("default", "aside")).pods == ()
    assert store.pod_names() == []


def test_another_deployment_of_the_same_name_is_new(store: Store) -> None:
    store.put_deployment(deployment(5, "p1"))
    store.refusals[DEMO] = ("something",)
    store.put_deployment(deployment(3, "p2"))
    assert store.deployments[DEMO].metadata.uid == "p2"
    assert store.observe(DEMO).refusals == ()


def test_a_deletion_is_of_one_uid(store: Store) -> None:
    store.put_deployment(deployment(5, "p2"))
    store.drop_deployment(DEMO, "p1")
    assert DEMO in store.deployments
    store.drop_deployment(DEMO, "p2")
    assert DEMO not in store.deployments
