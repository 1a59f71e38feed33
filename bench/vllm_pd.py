"""vLLM with prefill and decode in two servers, the KV cache moving over NIXL: started, and asked as its proxy would."""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.drivers import START_LIMIT_S
from bench.processes import Tied, wait_until_healthy
from bench.vllm import environment, fresh_cache, server_command
from penstock.listen import free_port


@dataclass(frozen=True)
class VllmPair:
    prefill: str
    decode: str
    model: str


@contextmanager
def running_vllm_pd(python: Path, model: Path) -> Iterator[VllmPair]:
    """Two eager servers, one thread on a core of its own each."""
    cache = fresh_cache()
    processes: list[Tied] = []
    urls: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-vllm-") as folder:
        try:
            for core, role in enumerate(("kv_producer", "kv_consumer")):
                port = free_port()
                transfer = {"kv_connector": "NixlConnector", "kv_role": role, "kv_buffer_device": "cpu"}
                variables = environment(1, cache) | {
                    "VLLM_CPU_OMP_THREADS_BIND": str(core % (os.cpu_count() or 1)),
                    "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
                }
                command = server_command(python, model, port)
                command += ["--enforce-eager", "--kv-transfer-config", json.dumps(transfer)]
                with (Path(folder) / role).open("w") as log:
                    processes.append(Tied(command, env=os.environ | variables, stdout=log, stderr=log))
                urls.append(f"http://127.0.0.1:{port}")
            for process, url in zip(processes, urls, strict=True):
                wait_until_healthy(process, f"{url}/health", START_LIMIT_S)
            yield VllmPair(urls[0], urls[1], str(model))
        except SystemExit:
            for role in ("kv_producer", "kv_consumer"):
                print("\n".join((Path(folder) / role).read_text().splitlines()[-20:]))
            raise
        finally:
            for process in processes:
                process.stop()


async def ask_vllm(vllm: VllmPair, prompt: Sequence[int], num_tokens: int) -> list[float]:
    """Times of the tokens: the first is the prefill server's answer, the others stream from the decode server."""
    body: dict[str, Any] = {
        "model": vllm.model,
        "prompt": list(prompt),
        "max_tokens": 1,
        "temperature": 0,
        "ignore_eos": True,
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False},
    }
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        async with session.post(f"{vllm.prefill}/v1/completions", json=body) as response:
            response.raise_for_status()
            answer = await response.json()
        times = [time.perf_counter()]
        body |= {"max_tokens": num_tokens, "stream": True, "kv_transfer_params": answer["kv_transfer_params"]}
        async with session.post(f"{vllm.decode}/v1/completions", json=body) as response:
            response.raise_for_status()
            times += [time.perf_counter() async for line in response.content if _is_token(line)]
    return times


def _is_token(line: bytes) -> bool:
    return line.startswith(b"data: {") and bool(json.loads(line[6:])["choices"])
