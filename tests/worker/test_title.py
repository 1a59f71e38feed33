"""Processes say in `ps` what they are."""

import subprocess
import sys

CODE = """
import sys
from penstock.worker.title import set_title, title
set_title(sys.argv[1] * int(sys.argv[2]))
print(title())
print(sys.argv[1:])
"""


def titled(*words: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_a_title_takes_the_place_of_the_arguments_which_python_keeps() -> None:
    words = ["worker grün", "1", "more", "words"]
    assert titled(*words) == ["worker grün", str(words)]


def test_a_title_that_does_not_fit_is_cut_off() -> None:
    words = ["worker ", "1000"]
    shown, kept = titled(*words)
    assert len("worker ") < len(shown) < len("worker " * 1000)
    assert ("worker " * 1000).startswith(shown)
    assert kept == str(words)
