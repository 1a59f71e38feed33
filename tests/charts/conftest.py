"""Helm and kubectl, from the PATH or from the shared cluster's programs; tests that need them are skipped without."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "penstock"
STATE = Path(os.environ.get("PENSTOCK_CLUSTER_STATE", "/tmp/penstock-cluster"))


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{STATE / 'bin'}")
    if found is None:
        pytest.skip(f"needs {name} on the PATH (the shared cluster brings it)")
    return found


class Helm:
    """`helm template` and friends on the chart."""

    def __init__(self, path: str) -> None:
        self.path = path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.path, *arguments], capture_output=True, text=True, timeout=60, check=False)

    def template(self, *options: str, namespace: str = "penstock-system") -> list[dict[str, Any]]:
        """The objects that the chart makes."""
        result = self.run("template", "penstock", str(CHART), "--namespace", namespace, *options)
        assert result.returncode == 0, result.stderr
        return [found for found in yaml.safe_load_all(result.stdout) if found]

    def refusal(self, *options: str) -> str:
        result = self.run("template", "penstock", str(CHART), *options)
        assert result.returncode != 0, "the values were taken"
        return result.stderr


@pytest.fixture(scope="session")
def helm() -> Helm:
    return Helm(program("helm"))


@pytest.fixture(scope="session")
def kubectl() -> str:
    return program("kubectl")
