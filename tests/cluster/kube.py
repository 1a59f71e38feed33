"""What the cluster tests need of kubectl and helm, on whatever cluster KUBECONFIG names."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

STATE = Path(os.environ.get("PENSTOCK_CLUSTER_STATE", "/tmp/penstock-cluster"))
CLIENT_IMAGE = os.environ.get("PENSTOCK_TEST_CLIENT_IMAGE", "penstock/test-client:test")
_IGNORED = ("events", "events.events.k8s.io", "leases.coordination.k8s.io", "pods.metrics.k8s.io")

Object = dict[str, Any]


class CommandFailed(AssertionError):
    """kubectl or helm refused."""


def program(name: str) -> str:
    """The path of kubectl or helm: the shared cluster's own, else that of the PATH. Skips the test without."""
    found = shutil.which(name, path=f"{STATE / 'bin'}:{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"needs {name} on the PATH")
    return found


def run(name: str, *arguments: str, text: str = "", timeout_s: float = 300) -> str:
    """Standard output of a program. Raises CommandFailed with what it said."""
    command = [program(name), *arguments]
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)
    if result.returncode != 0:
        raise CommandFailed(f"{name} {' '.join(arguments)}: {result.stdout}{result.stderr}")
    return result.stdout


def eventually(condition: Callable[[], object], what: str, *, within_s: float = 60.0) -> float:
    """Asks until `condition` is true; returns the seconds that took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - begin


@dataclass(frozen=True)
class Kube:
    """kubectl in one namespace."""

    namespace: str

    def run(self, *arguments: str, text: str = "", timeout_s: float = 300) -> str:
        return run("kubectl", "--namespace", self.namespace, *arguments, text=text, timeout_s=timeout_s)

    def get(self, *arguments: str) -> Object:
        found: Object = json.loads(self.run("get", *arguments, "--output", "json"))
        return found

    def items(self, kind: str, selector: str = "") -> list[Object]:
        found: list[Object] = self.get(kind, *(["--selector", selector] if selector else []))["items"]
        return found

    def apply(self, manifest: Path | str) -> str:
        """Applies a file, or YAML."""
        if isinstance(manifest, Path):
            return self.run("apply", "--server-side", "--filename", str(manifest))
        return self.run("apply", "--server-side", "--filename", "-", text=manifest)

    def replace(self, manifest: Path | str) -> None:
        """kubectl reads the object's version and then writes: what another writes in between, such as a status, is a
        conflict, after which a user repeats the command."""
        text = manifest.read_text() if isinstance(manifest, Path) else manifest

        def is_replaced() -> bool:
            try:
                self.run("replace", "--filename", "-", text=text)
            except CommandFailed as error:
                if "the object has been modified" not in str(error):
                    raise
                return False
            return True

        eventually(is_replaced, "the manifest is written", within_s=10)

    def condition(self, name: str, kind: str = "Ready") -> Object:
        """One condition of an LLMDeployment; {} if it has none yet."""
        conditions = self.get("llmd", name).get("status", {}).get("conditions", [])
        return next((found for found in conditions if found["type"] == kind), {})

    def wait_ready(self, name: str, within_s: float = 120.0) -> float:
        """Seconds until the LLMDeployment is Ready."""
        begin = time.monotonic()
        try:
            self.run("wait", "--for=condition=Ready", f"llmd/{name}", f"--timeout={within_s:.0f}s")
        except CommandFailed as error:
            raise CommandFailed(f"{error}\n{self.describe()}") from None
        return time.monotonic() - begin

    def describe(self) -> str:
        """What a person would look at first."""
        looks = (("get", "llmd,pods", "-o", "wide"), ("describe", "llmd"), ("get", "events", "--sort-by=lastTimestamp"))
        return "\n".join(self.run(*look) for look in looks)[-6000:]

    def everything(self) -> set[str]:
        """`kind/name` of every object in the namespace, but those that come and go by themselves."""
        kinds = run("kubectl", "api-resources", "--namespaced", "--verbs=list", "--output=name").split()
        wanted = ",".join(kind for kind in kinds if kind not in _IGNORED)
        return set(self.run("get", wanted, "--output", "name", "--ignore-not-found").split())

    def metrics(self, pod: str, port: int) -> dict[str, float]:
        """A pod's metrics by name with labels, asked inside the pod: a NetworkPolicy may keep others out."""
        code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/metrics').read().decode())"
        lines = self.run("exec", pod, "--", "python", "-c", code).splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def run_client(self, name: str, code: str, *, within_s: float = 120.0) -> str:
        """Runs Python in a pod of its own, which has the openai SDK. Returns what it printed."""
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        container = {
            "name": "client",
            "image": CLIENT_IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-c", code],
            "securityContext": security,
        }
        spec = {"restartPolicy": "Never", "containers": [container]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        self.apply(json.dumps(pod))

        def phase() -> str:
            found: str = self.get("pod", name)["status"].get("phase", "")
            return found

        try:
            eventually(lambda: phase() in ("Succeeded", "Failed"), f"pod {name} ends", within_s=within_s)
            said = self.run("logs", name)
            assert phase() == "Succeeded", said
        finally:
            self.run("delete", "pod", name, "--wait=true", "--grace-period=0", "--ignore-not-found")
        return said
