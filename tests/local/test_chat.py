"""`penstock chat` and `penstock demo` against a real cluster."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.local.demo import find_faults
from tests.local.processes import Up

DEMO = """
import sys
from penstock.config import Parser
from penstock.local.config import add_local_flags, local_config
from penstock.local.demo import run_demo
parser = Parser()
add_local_flags(parser, skip=("policy",))
sys.exit(run_demo(local_config(parser.parse_args(sys.argv[2:]), sys.argv[1], policy="least-work")))
"""


def chat(url: str, *lines: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "penstock.cli", "chat", "--url", url, "--max-tokens", "4"]
    return subprocess.run(
        command, input="".join(f"{line}\n" for line in lines), capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
def test_chat_answers_every_line_and_leaves_at_the_end_of_input(up: Up) -> None:
    url = re.findall(r"(http://\S+)/v1\n", up.text)[-1]
    result = chat(url, "Hello, who are you?", "/new", "Hello, who are you?")
    assert result.returncode == 0
    assert result.stderr == ""
    first, second = (answer for answer in result.stdout.split("\n") if answer.strip())
    assert first == second  # greedy, and the second conversation knows nothing of the first


@pytest.mark.slow
def test_chat_goes_on_after_a_failed_answer_and_ends_with_1(up: Up) -> None:
    url = re.findall(r"(http://\S+)/v1\n", up.text)[-1]
    result = chat(url, "word " * 5000, "Hello, who are you?")
    assert result.returncode == 1
    assert result.stderr.count("penstock: ") == 1
    assert result.stdout.strip(), "the second question was answered"


def test_chat_without_a_server_says_what_to_start() -> None:
    result = chat("http://127.0.0.1:9")
    assert result.returncode == 1
    assert "is `penstock up` running?" in result.stderr


@pytest.mark.slow
def test_demo_shows_which_worker_did_what_and_that_blocks_moved(tiny_model: Path) -> None:
    flags = ("--port", "0", "--kv-bytes", "8MiB")
    result = subprocess.run(
        [sys.executable, "-c", DEMO, str(tiny_model), *flags], capture_output=True, text=True, timeout=90
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"prefill-0 computed [1-9]\d* prompt tokens", result.stdout)
    assert re.search(r"[1-9]\d* KV blocks, [\d,]+ bytes, moved over (nixl|tcp)", result.stdout)
    assert re.search(r"decode-0 streamed [1-9]\d* tokens", result.stdout)


@pytest.mark.parametrize(
    ("empty", "moved", "prefill", "faults"), [(0, 5, 1, 0), (1, 5, 1, 1), (0, 0, 1, 1), (3, 0, 2, 2), (0, 0, 0, 0)]
)
def test_demo_fails_on_empty_answers_and_when_no_block_moved(empty: int, moved: int, prefill: int, faults: int) -> None:
    assert len(find_faults(empty, moved, prefill)) == faults
