"""How far a model's download is stands in the conditions while pods wait for it, and only then."""

import asyncio
from typing import Any

import msgspec
import pytest

from penstock.operator import fetching
from penstock.operator.client import ApiUnavailable
from penstock.operator.conditions import Facts, conditions
from penstock.operator.fetching import Fetching, progress_of
from penstock.operator.problems import Pod, PodState, Problem
from penstock.operator.store import Store

LINE = "hf://a/b@main: 3.2 GB of 16 GB (20 %), 100 MB/s, 2 min left"
KEY = ("default", "demo")


def pod(name: str, state: dict[str, Any]) -> Pod:
    labels = {"serving.penstock.dev/deployment": "demo", "serving.penstock.dev/role": "prefill"}
    init = {"name": "fetch-model", "ready": False, "restartCount": 0, "state": state}
    metadata = {"name": name, "namespace": "default", "labels": labels}
    return msgspec.convert({"metadata": metadata, "status": {"initContainerStatuses": [init]}}, Pod)


def fetching_pod(name: str) -> Pod:
    return pod(name, {"running": {"startedAt": "2026-11-21T03:00:00Z"}})


class Logs:
    """A client that knows one thing: logs."""

    def __init__(self, log: str) -> None:
        self.log = log
        self.paths: list[str] = []

    async def text(self, path: str, **query: Any) -> str:
        self.paths.append(path)
        assert query == {"container": "fetch-model", "tailLines": 1}
        if not self.log:
            raise ApiUnavailable("the node does not answer")
        return self.log


@pytest.fixture
def store() -> Store:
    store = Store(lambda _: None)
    metadata = {"name": "demo", "namespace": "default", "uid": "1", "resourceVersion": "1"}
    store.put_deployment({"metadata": metadata, "spec": {}})
    return store


def look(logs: Logs, store: Store, monkeypatch: pytest.MonkeyPatch, until: Any) -> None:
    """Runs until `until()`."""
    monkeypatch.setattr(fetching, "PAUSE_S", 0.001)

    async def run() -> None:
        task = asyncio.create_task(Fetching(logs, store).run())  # type: ignore[arg-type]
        async with asyncio.timeout(5):
            while not until():  # noqa: ASYNC110 - of a store without events
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_one_pod_of_a_deployment_is_asked_and_what_it_says_is_known(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_pod(fetching_pod("b"))
    store.put_pod(fetching_pod("a"))
    logs = Logs(f"penstock: {LINE}\n")
    look(logs, store, monkeypatch, lambda: store.observe(KEY).fetching)
    assert store.observe(KEY).fetching == LINE
    assert set(logs.paths) == {"/api/v1/namespaces/default/pods/a/log"}


def test_it_is_forgotten_when_the_model_is_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.set_fetching(KEY, "fetching x")
    store.put_pod(pod("a", {"terminated": {"exitCode": 0}}))
    logs = Logs("")
    look(logs, store, monkeypatch, lambda: not store.observe(KEY).fetching)
    assert logs.paths == []


def test_a_pod_that_cannot_be_asked_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.set_fetching(KEY, "fetching x")
    store.put_pod(fetching_pod("a"))
    logs = Logs("")
    look(logs, store, monkeypatch, lambda: len(logs.paths) > 1)
    assert store.observe(KEY).fetching == "fetching x"


def test_conditions_say_it_until_a_revision_serves() -> None:
    wanted = {"prefill": 2, "decode": 2, "router": 1}
    none = {"prefill": 0, "decode": 0, "router": 0}

    def ready(**changes: Any) -> tuple[str, str, str]:
        facts = Facts(wanted=wanted, ready=none, existing=wanted, fetching=LINE, **changes)  # type: ignore[arg-type]
        found = {condition.type: condition for condition in conditions(facts, (), 1, "now")}
        if not changes:
            assert found["PrefillAvailable"].message == f"0 of 2 ready: {LINE}"
        return found["Ready"].status, found["Ready"].reason, found["Ready"].message

    assert ready() == ("Unknown", "FetchingModel", LINE)
    assert ready(serving="abc")[0] == "False"


def test_the_problems_of_a_replaced_spec_do_not_hide_how_the_new_one_is() -> None:
    """Somebody forgot the token and now gives it: the first pods still fail while the new ones fetch."""
    old = PodState("a", "prefill", "old", False, Problem(8, "ModelNotFound", "no token"))
    wanted, none = {"prefill": 1, "decode": 1, "router": 1}, {"prefill": 0, "decode": 0, "router": 0}

    def available(target: str) -> tuple[str, str]:
        facts = Facts(wanted=wanted, ready=none, existing=wanted, pods=[old], target=target, fetching=LINE)  # type: ignore[arg-type]
        found = {condition.type: condition for condition in conditions(facts, (), 1, "now")}["PrefillAvailable"]
        return found.status, found.reason

    assert available("old") == ("False", "ModelNotFound")
    assert available("new") == ("Unknown", "FetchingModel")


def test_an_empty_log_says_nothing() -> None:
    assert progress_of("\n") == ""
