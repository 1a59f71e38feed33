"""Looks at LLMDeployments whenever something about them changed: observe, plan, execute."""

import asyncio
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime

import msgspec

from penstock.errors import PenstockError
from penstock.operator import api
from penstock.operator.client import ApiError, ApiUnavailable
from penstock.operator.config import OperatorConfig
from penstock.operator.executor import Executor, ParentGone
from penstock.operator.metrics import Metrics
from penstock.operator.plan import Plan, Subject, plan
from penstock.operator.render import Parent, render_revision
from penstock.operator.store import Deployment, Key, Store
from penstock.operator.work_queue import Queue

log = logging.getLogger(__name__)

_REFUSED_RETRY_S = 5.0
_TOLD_AFTER = 4
"""An API server that has failed so many looks in a row, for 4 s and more, is told of in the conditions."""


class Controller:
    """One per leading operator."""

    def __init__(
        self, config: OperatorConfig, store: Store, queue: Queue, executor: Executor, metrics: Metrics
    ) -> None:
        self._config = config
        self._store = store
        self._queue = queue
        self._executor = executor
        self._metrics = metrics

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._config.parallel):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            failed = False
            try:
                await self._look(key)
            except (ApiError, ApiUnavailable) as error:
                failed = True
                self._metrics.reconcile_errors.labels(type(error).__name__).inc()
                log.warning("%s/%s: %s", *key, error)
            except Exception as error:
                failed = True
                self._metrics.reconcile_errors.labels(type(error).__name__).inc()
                log.exception("%s/%s: unexpected error", *key)
            finally:
                self._queue.done(key, failed=failed)
                if key not in self._store.deployments:
                    self._queue.forget(key)

    async def _look(self, key: Key) -> None:
        deployment = self._store.deployments.get(key)
        if deployment is None or deployment.metadata.deletion_timestamp is not None:
            return
        begin = time.perf_counter()
        subject = read_subject(deployment, self._config)
        now = datetime.now(UTC)
        decided = self._plan(key, subject, _rfc3339(now))
        if decided.actions:
            await self._execute(key, subject, decided, _rfc3339(now))
        if decided.look_again_at:
            self._queue.add(key, (datetime.fromisoformat(decided.look_again_at) - now).total_seconds())
        changed = "true" if decided.actions else "false"
        self._metrics.reconcile_seconds.labels(changed).observe(time.perf_counter() - begin)

    def _plan(self, key: Key, subject: Subject, now: str) -> Plan:
        observed = self._store.observe(key)
        try:
            return plan(subject, observed, now)
        except Exception as error:  # a fault of ours, which the user must hear of; what serves is looked after still
            self._metrics.reconcile_errors.labels(type(error).__name__).inc()
            log.exception("%s/%s: unexpected error", *key)
            said = f"the operator fails on this spec, please report it ({type(error).__name__}: {error})"
            return plan(replace(subject, target=None, spec_error=said), observed, now)

    async def _execute(self, key: Key, subject: Subject, decided: Plan, now: str) -> None:
        try:
            outcome = await self._executor.run(subject.parent, decided.actions, now)
        except ParentGone:
            self._store.drop_deployment(key, subject.parent.uid)
            return
        refusals = outcome.refusals
        if outcome.failure is not None and self._queue.num_failures(key) >= _TOLD_AFTER:
            refusals += (f"the API server fails again and again: {outcome.failure}",)
        if refusals != self._store.refusals.get(key, ()):
            self._store.refusals[key] = refusals
            self._queue.add(key)
        elif refusals:
            self._queue.add(key, _REFUSED_RETRY_S)
        if outcome.failure is not None:
            raise outcome.failure


def _rfc3339(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def read_subject(deployment: Deployment, config: OperatorConfig) -> Subject:
    """What an LLMDeployment asks for; what cannot be read or rendered becomes `spec_error`."""
    metadata = deployment.metadata
    parent = Parent(metadata.name, metadata.namespace, metadata.uid)
    spec, error = api.Spec(model=api.Model(uri="")), ""
    try:
        spec = msgspec.json.decode(deployment.spec, type=api.Spec)
        target = render_revision(parent.name, spec, config)
    except (PenstockError, msgspec.ValidationError) as caught:
        target, error = None, str(caught)
    except Exception as caught:
        target, error = None, f"the spec cannot be rendered ({type(caught).__name__}: {caught})"
    return Subject(parent, metadata.generation, spec, target, error)
