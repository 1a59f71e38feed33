"""The import rules hold, see every module, and fail when one is broken."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Runs import-linter on the tree at `root` (PYTHONPATH goes before the installed package)."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    environment = {"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code in which rules may be broken."""
    for folder in ("decode", "engine", "kernels", "operator", "prefill", "router", "src"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_rules_hold() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_module_escapes_the_rules() -> None:
    """import-linter skips folders without __init__.py unless they are named as roots."""
    package = ROOT / "src" / "penstock"
    roots = {root.removeprefix("penstock").lstrip(".") for root in LINTER["root_packages"]}
    for folder in package.iterdir():
        if folder.is_dir() and next(folder.rglob("*.py"), None):
            assert folder.name in roots or (folder / "__init__.py").exists(), f"{folder.name} is not a root package"
            for deeper in folder.rglob("*/"):
                if next(deeper.glob("*.py"), None):
                    assert (deeper / "__init__.py").exists(), f"{deeper} needs an __init__.py"


VIOLATIONS = {
    "kernels/planted_a.py": "penstock.engine.config",
    "kernels/planted_b.py": "penstock.protocol",
    "engine/planted_c.py": "penstock.worker.http",
    "engine/planted_d.py": "fastapi",
    "engine/transfer/planted_e.py": "penstock.prefill.routes",
    "prefill/planted_f.py": "penstock.decode.routes",
    "decode/planted_g.py": "penstock.router.policy",
    "router/planted_h.py": "penstock.engine.config",
    "router/planted_i.py": "torch",
    "router/planted_j.py": "transformers",
    "operator/planted_k.py": "penstock.router.policy",
    "operator/planted_l.py": "penstock.worker.http",
    "router/planted_m.py": "penstock.operator.names",
    "src/penstock/hashing.py": "penstock.engine.config",
    "src/penstock/sources/planted_n.py": "penstock.router.policy",
    "src/penstock/simulator/planted_o.py": "penstock.worker.http",
    "src/penstock/simulator/planted_p.py": "torch",
    "router/planted_q.py": "penstock.simulator.cluster",
}


def test_planted_violations_are_found(tree: Path) -> None:
    for module, imported in VIOLATIONS.items():
        with (tree / module).open("a") as file:
            file.write(f"\nimport {imported}\n")
    result = lint(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    report = " ".join(result.stdout.split())
    for module, imported in VIOLATIONS.items():
        name = "penstock." + module.removeprefix("src/penstock/").removesuffix(".py").replace("/", ".")
        assert f"{name} -> {imported}" in report, f"not found: {name} -> {imported}\n{result.stdout}"
