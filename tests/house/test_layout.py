"""Code lives in top-level folders, and src/penstock links to them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE_FOLDERS = ("decode", "engine", "kernels", "operator", "prefill", "router")


@pytest.mark.parametrize("folder", [*CODE_FOLDERS, "bench", "tests"])
def test_no_top_level_folder_is_a_package(folder: str) -> None:
    """With an __init__.py, `operator/` would shadow the standard library's `operator` for every Python that is started
    in the repository root, and `kernels/` would shadow Hugging Face's `kernels`."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_an_init_file_in_operator_would_break_python_in_that_folder(tmp_path: Path) -> None:
    """The reason for the rule above, so that nobody has to believe it."""
    command = [sys.executable, "-m", "argparse"]
    (tmp_path / "operator").mkdir()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "operator" / "__init__.py").touch()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("folder", CODE_FOLDERS)
def test_every_code_folder_is_linked_into_the_package(folder: str) -> None:
    link = ROOT / "src" / "penstock" / folder
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{folder}"


def test_pytest_starts_in_the_repository_root() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/house/test_layout.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_tracked_file_names_a_folder_of_the_machine_it_was_written_on() -> None:
    home = "/" + "work/"
    command = ["git", "grep", "--line-number", "--untracked", "-I", "-e", home, "-e", "/" + "root/"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode == 128:
        pytest.skip("needs a git checkout")
    assert result.stdout == ""
