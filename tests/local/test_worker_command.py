"""`penstock prefill` and `penstock decode`: one worker with the real engine, as a pod runs it."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.local.processes import corrupt, wait_all_gone
from tests.local.tiny_model import write_tiny_model

pytestmark = pytest.mark.slow


def start(role: str, model: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "penstock.cli", role, "--model", str(model), "--port", "0", "--kv-bytes", "8MiB"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_front_has_no_torch_and_sigterm_ends_both_processes(role: str, tiny_model: Path) -> None:
    process = start(role, tiny_model)
    try:
        assert process.stderr
        line = next(line for line in process.stderr if "worker ready" in line)
        assert f"INFO penstock.worker.main: {role} worker ready at http://127.0.0.1:" in line
        (engine,) = psutil.Process(process.pid).children()
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" in Path(f"/proc/{engine.pid}/maps").read_text()
        process.terminate()
        assert process.wait(timeout=10) == 0
        assert wait_all_gone([engine], 0.1) == []
    finally:
        process.kill()
        process.communicate()


def test_model_that_cannot_be_served_ends_with_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    corrupt(write_tiny_model(tmp_path / "broken"))
    process = start("decode", tmp_path / "broken")
    _, text = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = (line for line in text.splitlines() if line.startswith("penstock: "))
    assert "model.safetensors is corrupt or truncated" in line
