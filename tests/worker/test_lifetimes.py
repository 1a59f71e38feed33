"""Front and engine live and die together, and callers learn of every end within their deadlines."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import Overloaded, WorkerLost
from penstock.protocol import BlocksRequest, Done, Error
from tests.worker.processes import WorkerProcess, running_worker, start, wait_gone
from tests.worker.requests import answer, call, fetch, read_to_end, request, run


def cut_short(worker: WorkerProcess, fault_pid: int, number: signal.Signals) -> float:
    """Sends the signal while a stream is open; seconds until its reader knows. The stream must end in WorkerLost."""

    async def lose() -> float:
        async with call(f"{worker.url}/generate", request("hang")) as hop:
            began = time.monotonic()
            os.kill(fault_pid, number)
            with pytest.raises(WorkerLost):
                await read_to_end(hop)
            return time.monotonic() - began

    return run(lose)


def test_killed_engine_takes_its_front_along_and_cuts_the_stream(tmp_path: Path) -> None:
    with running_worker(tmp_path) as worker:
        assert cut_short(worker, worker.engine_pid, signal.SIGKILL) < 1.0
        assert worker.process.wait(1.0) == 1
        assert "the engine process was killed by SIGKILL" in worker.process.communicate()[1]


@pytest.mark.parametrize("num_open", [0, 1500])
def test_engine_that_ends_just_after_its_pipe_has_its_end_told(num_open: int) -> None:
    """However many connections are open."""
    script = f"""if True:
        import os, resource, signal, time
        from penstock.worker.main import _exit_without_engine
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        held = [os.dup(2) for _ in range({num_open})]
        if (pid := os.fork()) == 0:
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        _exit_without_engine(pid)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "the engine process was killed by SIGKILL" in done.stderr


def test_killed_front_takes_its_engine_along(tmp_path: Path) -> None:
    with running_worker(tmp_path) as worker:
        assert cut_short(worker, worker.process.pid, signal.SIGKILL) < 1.0
        assert wait_gone(worker.engine_pid, within_s=1.0)


def test_frozen_engine_falls_silent_and_turns_unhealthy_until_it_thaws(tmp_path: Path) -> None:
    with running_worker(tmp_path) as worker:
        assert cut_short(worker, worker.engine_pid, signal.SIGSTOP) < 2.5
        status, body = fetch("GET", f"{worker.url}/health")
        assert status == 503
        assert b"silent" in body
        with pytest.raises(Overloaded, match="silent"):
            answer(f"{worker.url}/generate", request())
        os.kill(worker.engine_pid, signal.SIGCONT)
        deadline = time.monotonic() + 1.0
        while fetch("GET", f"{worker.url}/health")[0] != 200:
            assert time.monotonic() < deadline, "it thawed, but its front did not notice"
        assert isinstance(answer(f"{worker.url}/generate", request())[-1], Done)


@pytest.mark.parametrize(
    ("sign", "code", "reason"),
    [(signal.SIGSTOP, "prefill_lost", "was silent for 1.5 s"), (signal.SIGKILL, "prefill_died", "was cut")],
    ids=["freezes", "dies"],
)
def test_a_prefill_worker_that_freezes_or_dies_is_reported_to_the_decode_engine(
    tmp_path: Path, sign: signal.Signals, code: str, reason: str
) -> None:
    with running_worker(tmp_path / "p", "prefill") as prefill, running_worker(tmp_path / "d") as decode:
        body = request("keep", prefill=prefill.url)

        async def stop() -> list[Any]:
            async with call(f"{decode.url}/generate", body) as hop:
                await asyncio.to_thread(decode.journal.expect, "PeerArrived", body, 5.0, frame="Ticket")
                os.kill(prefill.engine_pid, sign)
                return await read_to_end(hop)

        assert run(stop)[-1].code == code
        assert reason in decode.journal.expect("PeerFailed", body)["reason"]


def test_a_source_that_says_nothing_is_left_in_time(tmp_path: Path) -> None:
    flags = ("--source-wait-s", "0.4")
    with running_worker(tmp_path / "s") as source, running_worker(tmp_path / "d", "decode", *flags) as decode:
        os.kill(source.process.pid, signal.SIGSTOP)
        body = request(source=source.url)
        began = time.monotonic()
        assert isinstance(answer(f"{decode.url}/generate", body)[-1], Done)
        assert 0.4 <= time.monotonic() - began < 1.2
        assert "no answer within 0.4 s" in decode.journal.expect("PeerFailed", body)["reason"]
        os.kill(source.process.pid, signal.SIGCONT)


def test_drain_lets_open_streams_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    with running_worker(tmp_path) as worker:

        async def drain() -> tuple[list[Any], int]:
            async with call(f"{worker.url}/generate", request(max_tokens=200)) as hop:
                worker.process.terminate()
                async with asyncio.timeout(5):
                    while (await asyncio.to_thread(fetch, "GET", f"{worker.url}/ready"))[0] == 200:
                        pass
                with pytest.raises(Overloaded, match="draining"):
                    await asyncio.to_thread(answer, f"{worker.url}/generate", request())
                health = await asyncio.to_thread(fetch, "GET", f"{worker.url}/health")
                return await read_to_end(hop), health[0]

        frames, health = run(drain)
        assert isinstance(frames[-1], Done)
        assert health == 200
        assert worker.process.wait(5.0) == 0
        assert wait_gone(worker.engine_pid, within_s=1.0)


@pytest.mark.parametrize("second_signal", [True, False])
def test_stream_that_outlives_the_grace_ends_with_a_retryable_error(tmp_path: Path, second_signal: bool) -> None:
    grace_s = "30" if second_signal else "0.3"
    with running_worker(tmp_path, "decode", "--drain-grace-s", grace_s) as worker:

        async def stop() -> list[Any]:
            async with call(f"{worker.url}/generate", request("hang")) as hop:
                worker.process.send_signal(signal.SIGINT)
                if second_signal:
                    async with asyncio.timeout(5):
                        while (await asyncio.to_thread(fetch, "GET", f"{worker.url}/ready"))[0] == 200:
                            pass
                    worker.process.send_signal(signal.SIGINT)
                return await read_to_end(hop)

        assert run(stop) == [Error(code="stopping", message="this worker is stopping")]
        assert worker.process.wait(5.0) == 0


def test_what_outlives_the_grace_can_be_read_by_who_takes_over(tmp_path: Path) -> None:
    with running_worker(tmp_path, "decode", "--drain-grace-s", "4") as worker:
        wanted = BlocksRequest(request_id="blocks", hashes=(b"one",))

        async def stop() -> Any:
            async with call(f"{worker.url}/generate", request("hang")) as hop:
                worker.process.terminate()
                assert (await read_to_end(hop))[-1].code == "stopping"
            async with call(f"{worker.url}/blocks", wanted) as hop:
                return await anext(hop.frames())

        began = time.monotonic()
        assert run(stop).blocks
        assert worker.process.wait(5.0) == 0
        assert time.monotonic() - began < 4.5


def test_drain_route_refuses_new_requests_without_stopping(tmp_path: Path) -> None:
    with running_worker(tmp_path) as worker:
        assert fetch("POST", f"{worker.url}/drain") == (200, b'{"draining":true,"open_streams":0}')
        assert fetch("GET", f"{worker.url}/ready")[0] == 503
        assert fetch("GET", f"{worker.url}/health")[0] == 200


def test_refused_model_is_an_error_of_the_worker_that_says_why() -> None:
    process = start("decode", "--port", "0", "--model", "broken")
    _, text = process.communicate(timeout=20)
    assert "ConfigError: config.json is missing in broken" in text
    assert process.returncode != 0


def test_taken_port_is_named_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, text = start("decode", "--port", str(port)).communicate(timeout=20)
    assert f"port {port}: Address already in use; choose another --host or --port" in text


def test_engine_that_crashes_on_a_request_cuts_only_after_what_it_said(tmp_path: Path) -> None:
    with running_worker(tmp_path) as worker:
        with pytest.raises(WorkerLost):
            answer(f"{worker.url}/generate", request("crash"))
        assert worker.process.wait(5.0) == 1
