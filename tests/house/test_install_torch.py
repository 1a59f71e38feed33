"""`make` never downloads gigabytes unasked: which torch install_torch.py takes (wheels made here, no network)."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_PIN = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
assert _PIN is not None
VERSION = _PIN[1]


def write_torch_wheel(folder: Path, version: str, *needs: str) -> None:
    """A torch wheel with metadata only; `needs` are its requirements."""
    info = f"torch-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment of its own; making one takes seconds."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


@pytest.fixture
def python(environment: Path) -> Path:
    """That Python, without torch."""
    if installed(environment):
        uninstall(environment)
    return environment


def install(python: Path, wheels: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    kept |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull, "PATH": "/usr/bin:/bin"}
    script = [str(python), str(ROOT / "install_torch.py")]
    return subprocess.run(script, env=kept | environment, capture_output=True, text=True, check=False)


def installed(python: Path) -> str | None:
    code = "import importlib.metadata as m; print(m.version('torch'))"
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def uninstall(python: Path) -> None:
    subprocess.run([str(python), "-m", "pip", "uninstall", "-qy", "torch"], check=True)


def test_a_cpu_build_that_pip_is_configured_with_is_taken_and_the_second_run_does_nothing(
    python: Path, tmp_path: Path
) -> None:
    write_torch_wheel(tmp_path / "wheels", f"{VERSION}+cpu", "filelock")
    write_torch_wheel(tmp_path / "wheels", VERSION, "nvidia-cudnn-cu13==9.20.0.48")
    first = install(python, tmp_path / "wheels")
    assert first.returncode == 0, first.stderr
    assert installed(python) == f"{VERSION}+cpu"
    shutil.rmtree(tmp_path / "wheels")
    assert install(python, tmp_path / "wheels").returncode == 0


@pytest.mark.skipif(shutil.which("nvidia-smi", path="/usr/bin:/bin") is not None, reason="needs a machine without GPU")
def test_without_a_gpu_a_cuda_build_is_refused_with_what_it_would_bring(python: Path, tmp_path: Path) -> None:
    write_torch_wheel(tmp_path / "wheels", VERSION, "filelock", "nvidia-cudnn-cu13==9.20.0.48", "cuda-toolkit==13.0.3")
    result = install(python, tmp_path / "wheels")
    assert result.returncode == 1
    assert "Nothing was downloaded" in result.stderr
    assert "nvidia-cudnn-cu13==9.20.0.48, cuda-toolkit==13.0.3" in result.stderr
    assert installed(python) is None


def test_a_cuda_build_is_taken_when_asked_for_and_with_a_gpu(python: Path, tmp_path: Path) -> None:
    write_torch_wheel(tmp_path / "wheels", VERSION, "nvidia-cudnn-cu13==9.20.0.48")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    assert install(python, tmp_path / "wheels", PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin").returncode == 0
    assert installed(python) == VERSION
    uninstall(python)
    assert install(python, tmp_path / "wheels", PENSTOCK_TORCH="cuda").returncode == 0
    assert installed(python) == VERSION


def test_no_wheel_at_all_is_said(python: Path, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    result = install(python, tmp_path / "wheels")
    assert result.returncode == 1
    assert f"No torch {VERSION} for this Python" in result.stderr


def test_this_python_runs_the_pinned_torch() -> None:
    assert installed(Path(sys.executable)) in (VERSION, f"{VERSION}+cpu", f"{VERSION}+cu130")
