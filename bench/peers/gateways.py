"""How each gateway of bench.gateways is started, and what it is asked.

The peers live in an environment of their own; PENSTOCK_BENCH_GATEWAYS names its bin folder.
"""

import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from bench.cluster import first_model, running
from bench.load import Timing
from bench.processes import ROOT, Tied, wait_until_healthy
from bench.report import percentile
from penstock.demo import MODEL_FOLDER
from penstock.listen import free_port

VARIABLE = "PENSTOCK_BENCH_GATEWAYS"
SGLANG_PIN, LITELLM_PIN, SMG_PIN = "sglang-router==0.3.2", "litellm[proxy]==1.104.0", "smg==1.13.0"
HOW_TO_INSTALL = f"""\
The peers are not installed: set {VARIABLE} to the bin folder of an environment of their own. To make one:
  python3.11 -m venv /path/to/gateways
  /path/to/gateways/bin/pip install --only-binary=:all: {SGLANG_PIN} '{LITELLM_PIN}'
  /path/to/gateways/bin/pip install --only-binary=:all: {SMG_PIN}     # last: two of them have a program called smg
  export {VARIABLE}=/path/to/gateways/bin"""

OURS, OURS_TEXT = "penstock, token ids", "penstock, text"
RUST, LITELLM = ("sglang-router", "smg"), "litellm"
PROMPT_TOKENS = 100
START_LIMIT_S = 90.0

Starter: TypeAlias = Callable[[Sequence[int]], AbstractContextManager["Gateway"]]
"""Starts a gateway in front of the workers at these ports."""


@dataclass
class Gateway:
    """A started gateway, the requests that it is asked, and how long they took."""

    name: str
    port: int
    process: Any
    """psutil's."""
    make: Callable[[int], bytes]
    """A request for an answer of so many tokens."""
    timings: list[Timing] = field(default_factory=list)
    direct: list[Timing] = field(default_factory=list)

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        times = [process.cpu_times() for process in self._processes()]
        return float(sum(each.user + each.system for each in times))

    def memory_mb(self) -> float:
        """Resident memory of all its processes."""
        return float(sum(process.memory_info().rss for process in self._processes())) / 1e6

    def added_ms(self, part: str, percent: float) -> float:
        """A percentile of the requests through it, less the median of those straight to a worker."""
        through = percentile([1e3 * getattr(timing, part) for timing in self.timings], percent)
        direct = statistics.median(1e3 * getattr(timing, part) for timing in self.direct)
        return float(through - direct)

    def _processes(self) -> list[Any]:
        return [self.process, *self.process.children(recursive=True)]


def starters() -> dict[str, Starter]:
    """Ours, and the peers where they are installed."""
    ours: dict[str, Starter] = {OURS: _penstock(OURS), OURS_TEXT: _penstock(OURS_TEXT)}
    named = os.environ.get(VARIABLE)
    if named is None:
        print(HOW_TO_INSTALL, file=sys.stderr)
        return ours
    folder = Path(named)
    for name in ("sglang-router", "smg", "litellm"):
        if not (folder / name).exists():
            raise SystemExit(f"{VARIABLE}={named} has no {name}.\n{HOW_TO_INSTALL}")
    return ours | {
        "sglang-router": _rust(folder, "sglang-router"),
        "smg": _rust(folder, "smg"),
        LITELLM: _litellm(folder),
    }


@contextmanager
def echo_worker(pace_s: float) -> Iterator[int]:
    """A worker that computes nothing; its port."""
    port = free_port()
    command = [sys.executable, "-m", "bench.peers.echo_worker", str(port), str(pace_s)]
    process = Tied(command, cwd=ROOT)
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}/health", 20)
        yield port
    finally:
        process.stop()


def chat_request(model: str, num_tokens: int) -> bytes:
    """A streamed chat completion with a new prompt of about PROMPT_TOKENS tokens."""
    words = " ".join(random.choices(_WORDS, k=PROMPT_TOKENS - 10))
    body = {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": num_tokens, "stream": True}
    return _post("/v1/chat/completions", body)


def ids_request(model: str, num_tokens: int) -> bytes:
    """A streamed completion of a new prompt of PROMPT_TOKENS token ids."""
    prompt = random.choices(range(300, 1000), k=PROMPT_TOKENS)
    body = {"model": model, "prompt": prompt, "max_tokens": num_tokens, "stream": True, "ignore_eos": True}
    return _post("/v1/completions", body)


_WORDS = ("cache", "block", "prefill", "decode", "key", "value", "token", "worker", "router", "queue", "water", "pipe")


def _post(path: str, body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\nauthorization: Bearer none\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


def keep_off_the_last_core() -> None:
    """The client, and the workers that it starts, leave the last core to the gateways."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:-1] or cores)


@contextmanager
def _on_the_last_core() -> Iterator[None]:
    """What is started within runs there."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(range(os.cpu_count() or 1))})
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def _penstock(name: str) -> Starter:
    @contextmanager
    def start(workers: Sequence[int]) -> Iterator[Gateway]:
        urls = ",".join(_urls(workers))
        with ExitStack() as stack:
            with _on_the_last_core():
                router = stack.enter_context(running("router", model=MODEL_FOLDER, decode=urls))
            model = first_model(router.url)
            request = ids_request if name == OURS else chat_request
            port = int(router.url.rpartition(":")[2])
            yield Gateway(name, port, psutil.Process(router.pid), lambda num_tokens: request(model, num_tokens))

    return start


def _rust(folder: Path, name: str) -> Starter:
    @contextmanager
    def start(workers: Sequence[int]) -> Iterator[Gateway]:
        port, metrics = free_port(), free_port()
        flags = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics), "--log-level", "warn"]
        with _peer(
            [str(folder / name), "launch", "--worker-urls", *_urls(workers), *flags], port, "/readiness"
        ) as process:
            yield Gateway(name, port, process, lambda num_tokens: chat_request("echo", num_tokens))

    return start


def _litellm(folder: Path) -> Starter:
    @contextmanager
    def start(workers: Sequence[int]) -> Iterator[Gateway]:
        models = [
            {
                "model_name": "echo",
                "litellm_params": {"model": "openai/echo", "api_base": f"{url}/v1", "api_key": "none"},
            }
            for url in _urls(workers)
        ]
        port = free_port()
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            json.dump({"model_list": models, "litellm_settings": {"telemetry": False}}, file)  # which is YAML too
            file.flush()
            command = [str(folder / "litellm"), "--config", file.name, "--host", "127.0.0.1", "--port", str(port)]
            with _peer(command, port, "/health/liveliness") as process:
                yield Gateway(LITELLM, port, process, lambda num_tokens: chat_request("echo", num_tokens))

    return start


@contextmanager
def _peer(command: Sequence[str], port: int, health: str) -> Iterator[psutil.Process]:
    """A peer's process, once it answers; what it said, if it never does."""
    environment = os.environ | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no look at the internet
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # no keys, as with the others
    }
    with tempfile.TemporaryFile("w+") as log:
        with _on_the_last_core():
            process = Tied(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until_healthy(process, f"http://127.0.0.1:{port}{health}", START_LIMIT_S)
            yield psutil.Process(process.pid)
        except BaseException:
            log.seek(0)
            sys.stderr.write("".join(log.readlines()[-30:]))
            raise
        finally:
            process.stop()


def _urls(ports: Sequence[int]) -> list[str]:
    return [f"http://127.0.0.1:{port}" for port in ports]
