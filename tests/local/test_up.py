"""`penstock up`: what it starts, keeps running, and leaves behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from penstock.local.ask import AskError, ask, first_model
from penstock.router.flow.keys import new_key
from tests.local.processes import Up, corrupt, listening_ports, running_up, wait_all_gone
from tests.local.tiny_model import write_tiny_model

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "What is the KV cache, and who fills it with keys and values?"}]


def url_of(up: Up) -> str:
    return str(re.findall(r"(http://\S+)/v1\n", up.text)[-1])


def test_up_serves_with_one_process_per_part(up: Up, tiny_model: Path) -> None:
    answer = ask(url_of(up), first_model(url_of(up)), QUESTION, lambda _: None, max_tokens=8)
    assert answer.usage["completion_tokens"] == 8
    assert {"x-penstock-prefill", "x-penstock-decode"} <= answer.headers.keys()
    assert first_model(url_of(up)) == tiny_model.name
    commands = sorted(" ".join(process.cmdline()).strip() for process in up.descendants())
    parts = [f"{which}penstock {name}" for which in ("engine of ", "") for name in ("decode-0", "prefill-0")]
    assert [command for command in commands if not command.startswith(sys.executable)] == parts
    assert len(commands) == len(parts) + 2  # nursery and router


def test_up_says_when_each_part_was_ready_and_what_to_paste(up: Up) -> None:
    for name in ("prefill-0", "decode-0", "router"):
        assert re.search(rf"{name} +starting\n", up.text)
        assert re.search(rf"{name} +ready in \d+\.\d s  http://127.0.0.1:\d+", up.text)
    assert f"curl -N {url_of(up)}/v1/chat/completions" in up.text


def test_printed_curl_line_works_when_pasted(up: Up) -> None:
    line = re.search(r"\n(curl .*)\n", up.text)
    assert line
    result = subprocess.run(["bash", "-c", line[1]], capture_output=True, text=True, timeout=30)
    assert "data: [DONE]" in result.stdout


def test_nursery_has_a_single_thread_so_that_forking_is_safe(up: Up) -> None:
    (nursery,) = (
        child for child in psutil.Process(up.process.pid).children() if "nursery" in " ".join(child.cmdline())
    )
    assert nursery.num_threads() == 1


def test_router_never_loads_torch(up: Up) -> None:
    (router,) = (child for child in psutil.Process(up.process.pid).children() if "tether" in " ".join(child.cmdline()))
    front = up.worker("decode-0")
    assert "libtorch" in Path(f"/proc/{front.pid}/maps").read_text()  # forked from a process that has it
    assert "libtorch" not in Path(f"/proc/{router.pid}/maps").read_text()


@pytest.mark.parametrize("name", ["decode-0", "prefill-0"])
def test_killed_worker_is_back_on_its_port_and_serves(up: Up, name: str) -> None:
    front = up.worker(name)
    (engine,) = front.children()
    ports = listening_ports(front)
    engine.kill()
    up.wait_line(rf"{name} +exited with code 1; starting it again")
    seconds = float(up.wait_line(rf"{name} +ready again in (\d+\.\d) s")[1])
    assert listening_ports(up.worker(name)) >= ports
    # 1.5 s on a machine of its own. On a busy one: half of the first start, which had torch to import.
    first = float(re.findall(rf"{name} +ready in (\d+\.\d) s", up.text)[0])
    assert seconds < max(1.5, first / 2)
    answer = ask(url_of(up), "tiny", QUESTION, lambda _: None, max_tokens=4)
    assert answer.usage["completion_tokens"] == 4


def test_frozen_worker_is_killed_and_started_again(up: Up) -> None:
    (engine,) = up.worker("decode-0").children()
    engine.suspend()
    up.wait_line(r"decode-0 +frozen or stuck for long: killed", within_s=30)
    up.wait_line(r"decode-0 +ready again in")
    assert wait_all_gone([engine], 2.0) == []
    assert ask(url_of(up), "tiny", QUESTION, lambda _: None, max_tokens=4).usage["completion_tokens"] == 4


def test_killed_router_is_back_on_its_port(up: Up) -> None:
    (router,) = (child for child in psutil.Process(up.process.pid).children() if "tether" in " ".join(child.cmdline()))
    router.kill()
    up.wait_line(r"router +was killed by SIGKILL; starting it again")
    up.wait_line(r"router +ready again in")
    assert first_model(url_of(up)) == "tiny"


def test_ctrl_c_stops_everything_within_three_seconds_and_logs_are_in_files(tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--port", "0", "--prefill", "0", "--kv-bytes", "8MiB", "--log-dir", str(tmp_path / "logs"))
    with running_up(str(tiny_model), *flags) as up:
        up.wait_ready()
        processes = up.descendants()
        assert len(processes) == 4  # nursery, router, and one decode worker's two
        began = time.monotonic()
        assert "stopped in" in up.stop()
        assert time.monotonic() - began < 3
        assert up.process.returncode == 0
        assert wait_all_gone(processes, 0.1) == []
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["decode-0.log", "router.log"]


def test_killed_up_takes_every_process_along(tiny_model: Path) -> None:
    with running_up(str(tiny_model), "--port", "0", "--kv-bytes", "8MiB") as up:
        up.wait_ready()
        processes = up.descendants()
        assert len(processes) == 6
        os.kill(up.process.pid, signal.SIGKILL)
        assert wait_all_gone(processes, 2.0) == []


def test_key_file_and_flags_of_the_environment_reach_the_router(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_FLAG_DEFAULT_MAX_TOKENS", "4")
    monkeypatch.setenv("PENSTOCK_FLAG_SHUTDOWN_GRACE_S", "7")
    key, digest = new_key()
    (tmp_path / "keys.toml").write_text(f'[me]\nkey_sha256 = ["{digest}"]\n')
    flags = ("--port", "0", "--prefill", "0", "--kv-bytes", "8MiB", "--keys", str(tmp_path / "keys.toml"))
    with running_up(str(tiny_model), *flags) as up:
        url = up.wait_ready()
        with pytest.raises(AskError, match="no API key is given"):
            first_model(url)
        model = first_model(url, key)
        assert ask(url, model, QUESTION, lambda _: None, key=key, ignore_eos=True).usage["completion_tokens"] == 4
        [router] = [process for process in up.descendants() if "router" in process.cmdline()]
        assert router.environ()["PENSTOCK_FLAG_SHUTDOWN_GRACE_S"] == "7"
        assert "--shutdown-grace-s" not in " ".join(router.cmdline()), "a flag would win"
        up.stop()


def test_ctrl_c_while_starting_leaves_nothing(tiny_model: Path) -> None:
    with running_up(str(tiny_model), "--port", "0") as up:
        up.wait_line("router +starting")
        processes = up.descendants()
        up.stop()
        assert wait_all_gone(processes, 0.1) == []


@pytest.mark.parametrize("host", ["::", "::1"])
def test_up_listens_on_ipv6_and_says_a_valid_url(tiny_model: Path, host: str) -> None:
    flags = ("--host", host, "--port", "0", "--prefill", "0", "--kv-bytes", "8MiB")
    with running_up(str(tiny_model), *flags) as up:
        url = up.wait_ready()
        assert url.startswith("http://[::1]:")
        assert first_model(url) == tiny_model.name
        up.stop()


def test_broken_weights_are_refused_once_with_the_file_and_exit_code_2(tmp_path: Path) -> None:
    corrupt(write_tiny_model(tmp_path / "broken"))
    with running_up(str(tmp_path / "broken"), "--port", "0") as up:
        output, _ = up.process.communicate(timeout=60)
    text = output.decode()
    assert up.process.returncode == 2
    assert text.count("model.safetensors is corrupt or truncated") == 1
    assert "Traceback" not in text


def test_refusal_of_the_router_is_shown_although_all_else_falls_silent_and_exits_with_2(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"model": {}}')  # enough for the engine, not for the router
    with running_up(str(folder), "--port", "0") as up:
        output, _ = up.process.communicate(timeout=60)
    text = output.decode()
    assert up.process.returncode == 2
    assert "tokenizer.json is not a tokenizer" in text
    assert text.splitlines()[-1] == "penstock: the router refused its configuration; its log says why"
    assert "Traceback" not in text


def test_taken_port_is_refused_before_anything_starts(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running_up(str(tiny_model), "--port", str(port)) as up:
            output, _ = up.process.communicate(timeout=20)
    assert up.process.returncode == 2
    assert output.decode().splitlines()[-1] == (
        f"penstock: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another --host or --port"
    )
