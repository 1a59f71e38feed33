"""`penstock fetch hf://...` as an init container runs it, against a hub on this machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources.fake_hub import COMMIT, FakeHub

REPOSITORY = "penstock-tests/tiny"
WEIGHTS = os.urandom(3_000_000)
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "consolidated.safetensors": WEIGHTS,
    "onnx/model.json": b"{}",
    "pytorch_model.bin": WEIGHTS,
}


def environment(hub: FakeHub | str, home: Path, **more: str) -> dict[str, str]:
    address = hub if isinstance(hub, str) else hub.url
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {"HF_ENDPOINT": address, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"} | more


def fetch(uri: str, hub: FakeHub | str, home: Path, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock.cli", "fetch", uri, *flags]
    return subprocess.run(
        command, env=environment(hub, home, **more), capture_output=True, text=True, timeout=60, check=False
    )


def folder_of(result: subprocess.CompletedProcess[str]) -> Path:
    assert result.returncode == 0, result.stderr
    return Path(result.stderr.strip().splitlines()[-1].partition(" is in ")[2])


def test_a_repository_is_fetched_once_without_what_nobody_reads(tmp_path: Path) -> None:
    with FakeHub(REPOSITORY, FILES) as hub:
        result = fetch(f"hf://{REPOSITORY}@main", hub, tmp_path)
        folder = folder_of(result)
        assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        assert f"fetching 3 MB of commit {COMMIT}" in result.stderr
        hub.downloads.clear()
        assert folder_of(fetch(f"hf://{REPOSITORY}", hub, tmp_path)) == folder
        assert hub.downloads == []


def test_the_router_fetches_no_weights(tmp_path: Path) -> None:
    with FakeHub(REPOSITORY, FILES) as hub:
        folder = folder_of(fetch(f"hf://{REPOSITORY}@main", hub, tmp_path, "--text-only", "true"))
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "tokenizer.json"]


def test_what_was_fetched_serves_without_a_hub(tmp_path: Path) -> None:
    with FakeHub(REPOSITORY, FILES) as hub:
        folder = folder_of(fetch(f"hf://{REPOSITORY}", hub, tmp_path))
        address = hub.url
    for revision in ("main", COMMIT):
        assert folder_of(fetch(f"hf://{REPOSITORY}@{revision}", address, tmp_path)) == folder
        assert folder_of(fetch(f"hf://{REPOSITORY}@{revision}", address, tmp_path, HF_HUB_OFFLINE="1")) == folder


def test_a_connection_that_breaks_is_resumed_where_it_broke(tmp_path: Path) -> None:
    weights = 8 * WEIGHTS  # huggingface_hub writes 10 MB at a time
    with FakeHub(
        REPOSITORY, FILES | {"model.safetensors": weights}, cut_after={"model.safetensors": 15_000_000}
    ) as hub:
        folder = folder_of(fetch(f"hf://{REPOSITORY}", hub, tmp_path))
        assert (folder / "model.safetensors").read_bytes() == weights
        assert hub.ranges == ["bytes=10485760-"]


def test_a_download_that_was_killed_is_whole_after_the_next_one(tmp_path: Path) -> None:
    """SIGKILL in mid-file, as when a node goes down; what is there by then is never taken for the model."""
    with FakeHub(REPOSITORY, FILES) as hub:
        command = [sys.executable, "-c", _KILLED_MIDWAY, REPOSITORY]
        killed = subprocess.run(command, env=environment(hub, tmp_path), capture_output=True, timeout=60, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        offline = fetch(f"hf://{REPOSITORY}", hub, tmp_path, HF_HUB_OFFLINE="1")
        assert offline.returncode == 2
        assert "is not whole in" in offline.stderr
        assert (folder_of(fetch(f"hf://{REPOSITORY}", hub, tmp_path)) / "model.safetensors").read_bytes() == WEIGHTS


_KILLED_MIDWAY = """
import os, signal, sys
from penstock.sources import hub, progress
from penstock.sources.uri import Hub

progress.Progress.add = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
hub.fetch(Hub(sys.argv[1]))
"""


def test_wrong_names_and_tokens_are_each_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    with FakeHub(REPOSITORY, FILES) as hub:
        assert "has no revision 'v9'; name a branch, a tag or a commit" in refusal(
            fetch(f"hf://{REPOSITORY}@v9", hub, tmp_path)
        )
        assert "check the name, or set HF_TOKEN" in refusal(fetch("hf://penstock-tests/none", hub, tmp_path))
    with FakeHub(REPOSITORY, FILES, token="right") as hub:
        assert "or it is private: check the name, or set HF_TOKEN (in Kubernetes, spec.model.tokenSecret)" in refusal(
            fetch(f"hf://{REPOSITORY}", hub, tmp_path)
        )
        assert "give a token that may read it" in refusal(fetch(f"hf://{REPOSITORY}", hub, tmp_path, HF_TOKEN="wrong"))
        folder_of(fetch(f"hf://{REPOSITORY}", hub, tmp_path, HF_TOKEN="right"))
    with FakeHub(REPOSITORY, FILES, token="right", gated=True) as hub:
        home = tmp_path / "gated"
        assert "is gated: ask for access on its page, then set HF_TOKEN" in refusal(
            fetch(f"hf://{REPOSITORY}", hub, home)
        )
        assert "the token given has no access" in refusal(fetch(f"hf://{REPOSITORY}", hub, home, HF_TOKEN="wrong"))


def test_no_network_is_one_sentence_and_the_pod_shows_it(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    said = refusal(
        fetch(
            f"hf://{REPOSITORY}", "http://127.0.0.1:9", tmp_path, "--termination-log", str(log), HF_HUB_ETAG_TIMEOUT="1"
        )
    )
    assert "cannot be fetched" in said
    assert log.read_text() == said.removeprefix("penstock: ")


def test_a_model_larger_than_the_disk_is_refused_before_it_fills_it(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root to mount a small file system")
    with FakeHub(REPOSITORY, FILES) as hub:
        command = [sys.executable, "-m", "penstock.cli", "fetch", f"hf://{REPOSITORY}"]
        script = f'mount -t tmpfs -o size=1m none {tmp_path} && exec "$@"'
        result = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *command],
            env=environment(hub, tmp_path),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    if "permission denied" in result.stderr.lower():
        pytest.skip("mounts are not allowed here")
    assert re.search(r"needs 3 MB more in .*, where 1\.\d+ MB are free", refusal(result))


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("penstock: ")]
    return lines[-1]
