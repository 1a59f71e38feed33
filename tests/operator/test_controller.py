"""What a look does when something in it fails: it is told in the conditions, and what serves is looked after."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, cast

import pytest

from penstock.operator import controller as module
from penstock.operator.actions import Action, WriteStatus
from penstock.operator.api import Status
from penstock.operator.client import ApiError
from penstock.operator.config import OperatorConfig
from penstock.operator.controller import Controller
from penstock.operator.executor import Executor, Outcome
from penstock.operator.metrics import Metrics
from penstock.operator.plan import Plan, Subject, plan
from penstock.operator.render import Parent
from penstock.operator.store import Key, Store
from penstock.operator.work_queue import Queue

DEMO: Key = ("default", "demo")


class Recorder:
    """An executor that keeps the status that would be written."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.statuses: list[Status] = []

    async def run(self, _parent: Parent, actions: Sequence[Action], _now: str) -> Outcome:
        self.statuses += [action.status for action in actions if isinstance(action, WriteStatus)]
        return self.outcome

    def said(self, kind: str) -> str:
        """The message of a condition, as written last."""
        return next(found.message for found in self.statuses[-1].conditions if found.type == kind)


def looks(spec: dict[str, Any], outcome: Outcome, until: str) -> Recorder:
    """Looks at one LLMDeployment until Degraded says `until`."""
    recorder = Recorder(outcome)

    async def run() -> None:
        queue = Queue(Metrics())
        store = Store(queue.add)
        controller = Controller(OperatorConfig(), store, queue, cast("Executor", recorder), Metrics())
        metadata = {"name": "demo", "namespace": "default", "uid": "1", "resourceVersion": "1", "generation": 1}
        store.put_deployment({"metadata": metadata, "spec": spec})
        task = asyncio.create_task(controller.run())
        async with asyncio.timeout(30):
            while not recorder.statuses or until not in recorder.said("Degraded"):  # noqa: ASYNC110 - a list has no events
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    return recorder


SPEC: dict[str, Any] = {"model": {"uri": "file:///models/x"}}
FINE = Outcome((), None)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            SPEC | {"router": {"template": {"metadata": {"annotations": "x"}}}},
            "spec.router.template.metadata.annotations",
        ),
        (SPEC | {"prefill": {"template": {"spec": {"containers": 3}}}}, "spec.prefill.template.spec.containers is '3'"),
        ({"model": {"uri": "hf://only-a-name"}}, "names no repository"),
    ],
)
def test_a_spec_that_cannot_be_rendered_is_said_in_words(spec: dict[str, Any], sentence: str) -> None:
    assert sentence in looks(spec, FINE, "").said("Progressing")


def test_a_fault_of_the_operator_is_told_and_what_serves_is_looked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(subject: Subject, *rest: Any) -> Plan:
        if subject.target is not None:
            raise KeyError("surprise")
        return plan(subject, *rest)

    monkeypatch.setattr(module, "plan", faulty)
    assert "(KeyError: 'surprise')" in looks(SPEC, FINE, "please report it").said("Degraded")


def test_an_api_server_that_fails_again_and_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.operator.work_queue.PAUSE_S", 0.0)
    monkeypatch.setattr("penstock.operator.work_queue._FIRST_RETRY_S", 0.001)
    failure = Outcome((), ApiError("PATCH /apis: etcd is full", status=500))
    said = looks(SPEC, failure, "etcd is full").said("Degraded")
    assert said == "the API server fails again and again: PATCH /apis: etcd is full"


DEEP = """
import json, sys
from penstock.operator.config import OperatorConfig
from penstock.operator.controller import read_subject
from penstock.operator.main import DEEPEST
from penstock.operator.store import read_deployment

sys.setrecursionlimit(DEEPEST)
deep = '{"a":' * 9_900 + "1" + "}" * 9_900
spec = '{"model": {"uri": "file:///m"}, "decode": {"template": {"spec": ' + deep + "}}}"
metadata = {"name": "demo", "namespace": "default", "uid": "1", "resourceVersion": "1"}
deployment = read_deployment({"metadata": metadata, "spec": json.loads(spec)})
print(bool(json.dumps(read_subject(deployment, OperatorConfig()).target.decode)))
"""


def test_a_spec_of_as_many_levels_as_the_api_server_takes_is_looked_at_like_any_other() -> None:
    result = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.returncode) == ("True\n", 0), result.stderr[-300:]
