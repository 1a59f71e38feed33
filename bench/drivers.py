"""Serving systems as processes that answer jobs: a batch of prompts in, the seconds it took out.

Every system is one `Driver`, so a benchmark alternates between ours and a peer without knowing which is which.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import aiohttp

from bench.processes import ROOT, Tied, wait_until_healthy

START_LIMIT_S = 600.0
JOB_LIMIT_S = 600.0

Prompts = Sequence[Sequence[int]]


class Driver(Protocol):
    """A started system."""

    name: str
    start_s: float
    """From the start of its process to its first token."""

    def generate(self, prompts: Prompts, max_tokens: int) -> float:
        """Answers all prompts at once, greedily, with exactly `max_tokens` each. Returns seconds."""
        ...

    def close(self) -> None: ...


class LineDriver:
    """A process that reads one job per line and answers each with one line (see bench/peers)."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.name = name
        self._log = tempfile.NamedTemporaryFile("w+", prefix=f"bench-{os.getpid()}-", suffix=".log")  # noqa: SIM115
        begin = time.perf_counter()
        self._process = Tied(
            command,
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        self._answer(START_LIMIT_S)
        self.start_s = time.perf_counter() - begin

    def generate(self, prompts: Prompts, max_tokens: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens}) + "\n")
        return float(self._answer(JOB_LIMIT_S)["seconds"])

    def close(self) -> None:
        self._process.stop()
        self._log.close()

    def _answer(self, limit_s: float) -> dict[str, float]:
        assert self._process.stdout is not None
        watchdog = threading.Timer(limit_s, self._process.stop)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line:
            self._log.seek(0)
            tail = "".join(self._log.readlines()[-30:])
            self.close()
            raise SystemExit(f"{self.name} ended or took longer than {limit_s:.0f} s:\n{tail}")
        answer: dict[str, float] = json.loads(line)
        return answer


class ServerDriver:
    """An OpenAI-compatible server, called with token ids and without streaming (the cheapest way for the server)."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        environment: dict[str, str] | None = None,
        *,
        health: str = "/health",
    ) -> None:
        """`health` answers 200 once the server takes requests."""
        self.name = name
        self._url = f"http://127.0.0.1:{port}"
        self._log = tempfile.NamedTemporaryFile("w+", prefix=f"bench-{os.getpid()}-", suffix=".log")  # noqa: SIM115
        begin = time.perf_counter()
        self._process = Tied(command, env=os.environ | (environment or {}), stdout=self._log, stderr=self._log)
        try:
            wait_until_healthy(self._process, self._url + health, START_LIMIT_S)
            self._model = self._first_model()
            self.generate([[5, 6, 7, 8]], 1)
        except BaseException:
            self.close()
            raise
        self.start_s = time.perf_counter() - begin

    def generate(self, prompts: Prompts, max_tokens: int) -> float:
        return asyncio.run(self._generate(prompts, max_tokens))

    def close(self) -> None:
        self._process.stop()
        self._log.close()

    def _first_model(self) -> str:
        with urllib.request.urlopen(self._url + "/v1/models", timeout=10) as answer:
            return str(json.load(answer)["data"][0]["id"])

    async def _generate(self, prompts: Prompts, max_tokens: int) -> float:
        timeout = aiohttp.ClientTimeout(total=JOB_LIMIT_S)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one(prompt: Sequence[int]) -> int:
                body = {
                    "model": self._model,
                    "prompt": list(prompt),
                    "max_tokens": max_tokens,
                    "temperature": 0,
                    "ignore_eos": True,
                }
                async with session.post(self._url + "/v1/completions", json=body) as response:
                    response.raise_for_status()
                    return int((await response.json())["usage"]["completion_tokens"])

            begin = time.perf_counter()
            counts = await asyncio.gather(*(one(prompt) for prompt in prompts))
            seconds = time.perf_counter() - begin
        if set(counts) != {max_tokens}:
            raise SystemExit(f"{self.name} answered {counts} tokens instead of {max_tokens} each")
        return seconds


def penstock_inprocess(model: Path, *, threads: int = 0) -> LineDriver:
    """Our engine alone, in one process, with the OpenMP settings that workers give themselves."""
    script = ["-m", "bench.peers.penstock_inprocess", "--model", str(model), "--threads", str(threads)]
    return LineDriver("penstock", [sys.executable, *script])
