"""A benchmark without its packages ends with a sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT = "import runpy, sys; sys.modules[{package!r}] = None; runpy.run_module({module!r}, run_name='__main__')"


@pytest.mark.parametrize(
    ("module", "package", "extras"),
    [
        ("bench.memory", "psutil", "bench"),
        ("bench.operator_scale", "psutil", "bench,operator"),
        ("bench.operator_scale", "kubernetes", "bench,operator"),
    ],
)
def test_a_missing_package_is_a_sentence_that_says_what_to_install(module: str, package: str, extras: str) -> None:
    code = WITHOUT.format(package=package, module=module)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert f"needs the Python package {package} of the extra {extras}," in result.stderr
    assert "`make dev`" in result.stderr
