"""A cluster in memory: does a plan's actions to plain dicts, and plays Kubernetes' part (uids, generations, pods)."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from penstock.operator import api, names
from penstock.operator.actions import (
    Action,
    Apply,
    Create,
    CreateSecret,
    Delete,
    Rescale,
    Seed,
    WritePoolStatus,
    WriteStatus,
)
from penstock.operator.config import OperatorConfig
from penstock.operator.observed import Observed, Verification, seen
from penstock.operator.plan import Plan, Subject, plan
from penstock.operator.problems import PodState, Problem
from penstock.operator.render import Manifest, Parent, render_revision

NOW = "2026-11-21T03:00:00Z"
DEMO = api.Model(uri="file:///models/penstock-demo")


def spec(**changes: Any) -> api.Spec:
    """A small LLMDeployment: 2 prefill and 2 decode workers without GPUs."""
    pool = api.Pool(replicas=2, gpus=0)
    return msgspec.structs.replace(api.Spec(model=DEMO, prefill=pool, decode=pool), **changes)


@dataclass
class World:
    """One LLMDeployment `demo` and everything that is made of it."""

    spec: api.Spec = field(default_factory=spec)
    config: OperatorConfig = field(default_factory=OperatorConfig)
    generation: int = 1
    uid: str = "parent-1"
    objects: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    status: api.Status = field(default_factory=api.Status)
    broken: dict[str, Problem] = field(default_factory=dict)
    """Revisions whose pods have a problem and never become ready."""
    ending: list[PodState] = field(default_factory=list)
    """Pods that are being deleted."""
    verification: Verification | None = None
    secrets: int = 0
    _uids: Any = field(default_factory=itertools.count)

    def change(self, new: api.Spec) -> None:
        """The user applies another spec."""
        self.spec, self.generation = new, self.generation + 1

    def subject(self) -> Subject:
        target = render_revision("demo", self.spec, self.config)
        return Subject(Parent("demo", "default", self.uid), self.generation, self.spec, target)

    def observe(self) -> Observed:
        found = {key: seen(copy.deepcopy(manifest)) for key, manifest in self.objects.items()}
        return Observed(found, tuple(self.pods()), self.status, self.verification)

    def plan(self) -> Plan:
        return plan(self.subject(), self.observe(), NOW)

    def step(self) -> Sequence[Action]:
        """One look: plan and do all of it."""
        actions = self.plan().actions
        for action in actions:
            self.do(action)
        return actions

    def settle(self, *, pods: bool = True, looks: int = 60) -> int:
        """Looks until nothing is left to do; pods become ready between looks. Returns how many looks that took."""
        for count in range(looks):
            if pods:
                self.run_pods()
            if not self.step():
                return count
        raise AssertionError(f"still busy after {looks} looks: {self.plan().actions}")

    def do(self, action: Action) -> None:
        match action:
            case Create(manifest) | Seed(manifest):
                assert (manifest["kind"], manifest["metadata"]["name"]) not in self.objects
                self._put(manifest)
            case Apply(manifest, uid):
                assert self._at(manifest)["metadata"]["uid"] == uid
                self._put(manifest)
            case Rescale(name, uid, replicas):
                found = self.objects["LLMPool", name]
                assert found["metadata"]["uid"] == uid
                found["spec"] |= {"replicas": replicas, "declaredReplicas": replicas}
                self._touch(found)
            case CreateSecret():
                self.secrets += 1
            case Delete(kind, name, uid):
                assert self.objects.pop((kind, name))["metadata"]["uid"] == uid
            case WriteStatus(status):
                self.status = status
            case WritePoolStatus(name, _, status):
                self.objects["LLMPool", name]["status"] = msgspec.to_builtins(status)

    def run_pods(self) -> None:
        """Every Deployment has its pods, ready unless their revision is broken."""
        for manifest in self.of_kind("Deployment"):
            wanted = manifest["spec"]["replicas"]
            ready = 0 if self.revision_of(manifest) in self.broken else wanted
            if self.role_of(manifest) == "router" and not self.ready("decode"):
                ready = 0
            manifest["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
            manifest["status"] = {
                "observedGeneration": manifest["metadata"]["generation"],
                "replicas": wanted,
                "updatedReplicas": wanted,
                "readyReplicas": ready,
            }
            self._touch(manifest, spec_changed=False)

    def pods(self) -> list[PodState]:
        return self.ending + [
            PodState(f"{revision}-{role}", role, revision, False, problem)
            for revision, problem in self.broken.items()
            for role in ("prefill", "decode")
            if ("Deployment", f"demo-{role}-{revision}") in self.objects
        ]

    def of_kind(self, kind: str) -> list[Manifest]:
        return [manifest for (of, _), manifest in self.objects.items() if of == kind]

    def replicas(self) -> dict[str, dict[str, int]]:
        """Revision -> role -> replicas of its Deployment."""
        found: dict[str, dict[str, int]] = {}
        for manifest in self.of_kind("Deployment"):
            if revision := self.revision_of(manifest):
                found.setdefault(revision, {})[self.role_of(manifest)] = manifest["spec"]["replicas"]
        return found

    def ready(self, role: str) -> int:
        """Ready pods of a role, of all revisions."""
        return sum(
            manifest.get("status", {}).get("readyReplicas", 0)
            for manifest in self.of_kind("Deployment")
            if self.role_of(manifest) == role
        )

    def condition(self, kind: str) -> api.Condition:
        return next(condition for condition in self.status.conditions if condition.type == kind)

    def snapshot(self) -> dict[tuple[str, str], Any]:
        """All objects without what differs from run to run."""
        found = copy.deepcopy(self.objects)
        for manifest in found.values():
            for key in ("uid", "resourceVersion", "generation"):
                del manifest["metadata"][key]
            manifest.pop("status", None)
        return found

    @staticmethod
    def role_of(manifest: Manifest) -> str:
        role: str = manifest["metadata"]["labels"][names.ROLE]
        return role

    @staticmethod
    def revision_of(manifest: Manifest) -> str:
        revision: str = manifest["metadata"]["labels"].get(names.REVISION, "")
        return revision

    def _at(self, manifest: Manifest) -> Manifest:
        return self.objects[manifest["kind"], manifest["metadata"]["name"]]

    def _put(self, manifest: Manifest) -> None:
        """Server-side apply, as far as these objects need it."""
        key = (manifest["kind"], manifest["metadata"]["name"])
        new = copy.deepcopy(manifest)
        if key in self.objects:
            old = self.objects[key]
            if manifest["kind"] == "LLMPool":
                new["spec"] = old["spec"] | new["spec"]
            new["metadata"] = old["metadata"] | new["metadata"]
            new |= {"status": old["status"]} if "status" in old else {}
        else:
            new["metadata"] |= {"uid": f"uid-{next(self._uids)}", "generation": 0, "resourceVersion": "0"}
        self.objects[key] = new
        self._touch(new)

    @staticmethod
    def _touch(manifest: Manifest, *, spec_changed: bool = True) -> None:
        metadata = manifest["metadata"]
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        metadata["generation"] += spec_changed


def upgraded(world: World) -> OperatorConfig:
    """A configuration with a newer worker image."""
    return replace(world.config, worker_image_cpu="penstock/worker:next")
