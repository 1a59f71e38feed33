"""Dockerfiles, constraints and pyproject.toml agree, also about what cannot be built here: the image with CUDA."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
WORKER = (ROOT / "docker" / "worker.Dockerfile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def instructions(text: str) -> list[str]:
    """A Dockerfile's instructions, one line each, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_image_is_built_on_the_one_base_that_an_argument_can_pin(file: Path) -> None:
    lines = instructions(file.read_text())
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
    assert bases <= {"${BASE}", "scratch"}
    if bases != {"scratch"}:
        assert lines[0] == "ARG BASE=docker.io/library/python:3.11-slim"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_argument_is_used_and_every_one_that_is_used_is_declared_in_its_stage(file: Path) -> None:
    stages = re.split(r"^(?=FROM )", "\n".join(instructions(file.read_text())), flags=re.MULTILINE)
    assert set(re.findall(r"^ARG (\w+)", stages[0], re.MULTILINE)) <= {"BASE"}
    for stage in stages[1:]:
        body = stage.partition("\n")[2]
        declared = set(re.findall(r"^ARG (\w+)", body, re.MULTILINE))
        used = set(re.findall(r"\$\{([A-Z]+)\}", body))
        assert declared == used


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_pip_installs_nothing_without_the_constraints_that_were_copied_before(file: Path) -> None:
    copied: set[str] = set()
    for line in instructions(file.read_text()):
        if line.startswith("COPY "):
            copied |= set(line.split()[1:-1])
        for command in re.findall(r"pip install ([^&]*)", line):
            constraints = {name.lstrip("/") for name in re.findall(r"--constraint (\S+)", command)}
            assert constraints or "--no-deps" in command, command
            assert constraints <= copied
            assert all((ROOT / name).is_file() for name in constraints)


def test_the_worker_image_knows_two_builds_of_torch_and_asks_for_extras_that_exist() -> None:
    assert set(re.findall(r"TORCH(?:=|} = |\}\" = )(cpu|cuda|\w+)", WORKER)) == {"cpu", "cuda"}
    assert "PENSTOCK_TORCH=${TORCH}" in WORKER
    assert '"PENSTOCK_TORCH") == "cuda"' in (ROOT / "install_torch.py").read_text()
    extras = set(",".join(re.findall(r"extras=([a-z,-]+)", WORKER)).split(","))
    assert extras == {"worker", "tracing", "zmq", "nixl", "nixl-cuda", "gpu"}
    assert extras <= set(EXTRAS)


def test_what_cuda_brings_along_is_pinned_for_the_torch_that_is_pinned() -> None:
    """`python docker/pin_cuda.py` reads the versions from the metadata of torch's own wheel."""
    text = (ROOT / "constraints-cuda.txt").read_text()
    torch, cuda = pins("constraints.txt")["torch"], pins("constraints-cuda.txt")
    assert f"torch=={torch} for CUDA" in text, "run: python docker/pin_cuda.py"
    assert set(text.splitlines()) - {f"{name}=={version}" for name, version in cuda.items()} == {
        line for line in text.splitlines() if line.startswith("#")
    }
    assert {"cuda-toolkit", "nvidia-cublas", "nvidia-cuda-runtime", "nvidia-nccl-cu13"} <= set(cuda)
    assert not set(cuda) & set(pins("constraints.txt")), "one place for each version"
    assert "--constraint constraints-cuda.txt" in WORKER


def test_nixl_is_of_the_same_cuda_as_torch() -> None:
    major = pins("constraints-cuda.txt")["nvidia-cuda-runtime"].split(".")[0]
    assert [need.split("==")[0] for need in EXTRAS["nixl-cuda"]] == [f"nixl-cu{major}"]
