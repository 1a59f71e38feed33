"""The wheel and the sdist carry everything, and the small components install without the large libraries."""

import importlib.util
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LARGE = {"torch", "transformers", "numpy"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from the sdist (so the sdist is whole)."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def modules_of_the_repository() -> set[str]:
    package = ROOT / "src" / "penstock"
    return {
        str(file.relative_to(ROOT / "src"))
        for folder in (package, *package.iterdir())
        if folder.is_dir()
        for file in folder.rglob("*.py")
    }


def test_the_wheel_has_every_module_the_type_marker_and_the_demonstration_model(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert modules_of_the_repository() <= names
    assert "penstock/py.typed" in names
    for part in ("model.safetensors", "tokenizer.json", "config.json"):
        assert any(name.startswith("penstock/demo/") and name.endswith(part) for name in names), part


def test_the_sdist_has_the_code_and_the_tests(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert {f"src/{module}" for module in modules_of_the_repository()} <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "tests/house/test_packaging.py"} <= names


@pytest.mark.parametrize(("extra", "modules"), [("router", ["penstock.router.main"]), ("operator", ["penstock"])])
def test_a_small_component_installs_without_large_libraries(
    dist: Path, tmp_path: Path, extra: str, modules: list[str]
) -> None:
    python = clean_environment(tmp_path, f"penstock[{extra}] @ {next(dist.glob('*.whl')).as_uri()}")
    listed = run(python, "-m", "pip", "list", "--format=freeze").lower().splitlines()
    names = {line.split("==")[0] for line in listed}
    assert "penstock" in names
    assert names.isdisjoint(LARGE)
    for module in modules:
        run(python, "-c", f"import {module}")


def test_the_worker_runs_from_the_wheel(dist: Path, tmp_path: Path) -> None:
    """Installed without its dependencies, which this environment lends: torch is too large to install twice."""
    python = clean_environment(tmp_path, "--no-deps", str(next(dist.glob("*.whl"))))
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    lent = str(Path(spec.origin).parents[1])
    code = f"import sys; sys.path.append({lent!r}); import penstock.engine.engine as e; print(e.__file__)"
    assert str(tmp_path) in run(python, "-c", code)
    code = f"import sys; sys.path.append({lent!r}); from penstock.cli import main; main(['--help'])"
    assert "penstock" in run(python, "-c", code)


def clean_environment(folder: Path, *arguments: str) -> Path:
    """The Python of a new environment with `arguments` installed. Skips where no package index can be reached."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--constraint",
        str(ROOT / "constraints.txt"),
    ]
    result = subprocess.run([*pip, *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        probe = [*pip[:4], "--dry-run", "--no-deps", "--ignore-installed", "msgspec"]
        if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
            pytest.skip("no package index can be reached")
    assert result.returncode == 0, result.stderr
    return python


def run(python: Path, *arguments: str) -> str:
    """Runs `python` outside the repository and returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(python), *arguments], cwd=python.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
