"""Every dependency is pinned and has a reason."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CONSTRAINTS = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def own_dependencies() -> list[str]:
    everything = PROJECT["dependencies"] + [need for extra in EXTRAS.values() for need in extra]
    return sorted({need for need in everything if not need.startswith("penstock[")})


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_extras_of_the_components_exist() -> None:
    assert {"worker", "router", "operator", "nixl", "gpu", "bench", "dev"} <= set(EXTRAS)


@pytest.mark.parametrize("need", own_dependencies())
def test_dependency_is_pinned_with_a_reason_in_one_place(need: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", need), "pin one exact version"
    lines = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if f'"{need}"' in line]
    reasons = [line for line in lines if re.search(r'",\s+# \S.{3,}', line)]
    assert reasons, f"{need} needs a comment that says what it is for"


@pytest.mark.parametrize("need", own_dependencies())
def test_constraints_name_the_same_version(need: str) -> None:
    name, version = need.split("==")
    pins = {normal(pinned): pinned_version for pinned, pinned_version in CONSTRAINTS.items()}
    assert pins[normal(name)] == version
