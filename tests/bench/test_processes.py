"""Whatever a benchmark started ends with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench import processes
from bench.processes import Tied, run

STUBBORN = "trap '' INT TERM HUP; sleep 600 & echo $!; wait; wait"
"""A server and its engine core, both deaf to all that can be ignored."""

BENCHMARK = f"""
import signal, subprocess
from bench.processes import Tied
server = Tied(["/bin/sh", "-c", {STUBBORN!r}], stdout=subprocess.PIPE, text=True)
print(server.pid, server.stdout.readline(), server._guard.pid, flush=True)
signal.pause()
"""


def assert_gone(pids: list[int], within_s: float = 5.0) -> None:
    """Orphans that nobody reaps may remain as zombies."""
    found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(found, timeout=within_s)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("group", [False, True], ids=["alone", "with-its-group"])
def test_a_killed_benchmark_takes_along_all_that_it_started(number: signal.Signals, group: bool) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", BENCHMARK], cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as benchmark:
        assert benchmark.stdout is not None
        words = (benchmark.stdout.readline() + benchmark.stdout.readline()).split()
        pids = [int(word) for word in words]
        assert len(pids) == 3
        assert all(psutil.pid_exists(pid) for pid in pids)
        (os.killpg if group else os.kill)(benchmark.pid, number)
        benchmark.wait(5)
        assert_gone(pids)


def test_what_does_not_end_in_good_order_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE_S", 0.2)
    with Tied(["/bin/sh", "-c", STUBBORN], stdout=subprocess.PIPE, text=True) as server:
        core = int(server.stdout.readline())
        server.stop()
        server.stop()
    assert server.returncode == -signal.SIGKILL
    assert_gone([server.pid, core, server._guard.pid])


def test_a_command_that_fails_or_takes_too_long_is_said_with_its_output() -> None:
    run(["/bin/sh", "-c", "echo good"], limit_s=10)
    with pytest.raises(SystemExit, match=r"(?s)ended with status 3:.*no such thing"):
        run(["/bin/sh", "-c", "echo no such thing; exit 3"], limit_s=10)
    with pytest.raises(SystemExit, match="`sleep 600` took longer than 0 s"):
        run(["sleep", "600"], limit_s=0.2)
