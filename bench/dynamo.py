"""Dynamo's offline replay beside our simulator: the same trace, timing model, sizes and policy in both.

For this the simulator has workers that no other figure is about (`MockerWorker`), without hops, transfers and event
delay.
The replay lives in its own environment, whose Python PENSTOCK_BENCH_DYNAMO names.
"""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.processes import ROOT
from penstock.engine.sequence import Role
from penstock.router.policy import Policy
from penstock.simulator.call import Call
from penstock.simulator.cluster import ClusterSpec, simulate
from penstock.simulator.kinds import WorkerKind
from penstock.simulator.sequence import SimulatedSequence
from penstock.simulator.trace import BLOCK_TOKENS, Trace
from penstock.simulator.worker import Worker

VARIABLE = "PENSTOCK_BENCH_DYNAMO"
HOW_TO_INSTALL = f"""\
Dynamo's replay is not installed: set {VARIABLE} to the Python of an environment of its own that has it. To make one:
  python3.11 -m venv /path/to/dynamo
  /path/to/dynamo/bin/pip install --no-deps --only-binary=:all: ai-dynamo==1.4.2 ai-dynamo-runtime==1.4.2   # 60 MB
  export {VARIABLE}=/path/to/dynamo/bin/python"""

NUM_BLOCKS = 2048


@dataclass(frozen=True, slots=True)
class MockerStep:
    """The mocker's built-in timing (ai-dynamo/dynamo, lib/mocker/src/common/perf_model.rs, `Polynomial`)."""

    total_tokens: int
    decodes: bool

    def seconds(
        self, prefill_tokens: float = 0, prefill_pairs: float = 0, decode_tokens: float = 0, context_tokens: float = 0
    ) -> float:
        del prefill_pairs  # its prompts cost by their new tokens alone
        prefill_ms = 4.209989e-07 * prefill_tokens**2 + 1.518344e-02 * prefill_tokens + 1.650142e01
        used = min(1.0, context_tokens / self.total_tokens)
        decode_ms = max(1.0, -25.74 * used**2 + 54.01 * used + 5.74)
        step_ms = (prefill_ms if prefill_tokens else 0.0) + (decode_ms if decode_tokens and self.decodes else 0.0)
        return max(1e-9, step_ms / 1000)


class MockerWorker(Worker):
    """A prefill worker of the replay hands a prompt over when it has generated the whole answer.

    In 1.4.2 that takes one step per token beside other prompts, and no time when there are none. (Seen by replaying
    few requests: with answers of one token each is handed over when its prompt is computed, with longer ones later.)
    """

    def sampled(self, call: Call, sequence: SimulatedSequence, count: int) -> None:
        if sequence.request.role is Role.PREFILL:
            sequence.grow(count)
            if sequence.num_left > 0:
                return
        super().sampled(call, sequence, count)


def _kind(*, decodes: bool) -> WorkerKind:
    return WorkerKind(
        name="mocker",
        step=MockerStep(NUM_BLOCKS * BLOCK_TOKENS, decodes),
        kv_tokens=NUM_BLOCKS * BLOCK_TOKENS,
        kv_token_bytes=1,
        link_bytes_s=1e15,  # without `kv_bytes_per_token` its transfers take no time
        link_latency_s=0.0,
        source="Dynamo's mocker",
    )


def ours(trace: Trace, prefill: int, decode: int, policy: Policy) -> list[float]:
    """Times to first token in seconds, in our simulator made to be the replay: messages and events take no time."""
    spec = ClusterSpec((_kind(decodes=False),) * prefill, (_kind(decodes=True),) * decode, hop_s=0.0, event_delay_s=0.0)
    run = simulate(trace, spec, lambda _: policy, MockerWorker)
    return [each.ttft_s for each in run.outcomes if each.ttft_s is not None]


def peer_python() -> Path | None:
    """The replay's Python, or None where it is not installed."""
    named = os.environ.get(VARIABLE)
    if named is None:
        return None
    if subprocess.run([named, "-c", "import dynamo.replay"], capture_output=True, check=False).returncode != 0:
        raise SystemExit(f"{VARIABLE}={named} cannot import dynamo.replay.\n{HOW_TO_INSTALL}")
    return Path(named)


def replay(
    python: Path, trace: Path, requests: int, speed: float, prefill: int, decode: int, router: str
) -> list[float]:
    """Times to first token in seconds, of the first `requests` of a Mooncake trace."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        part, report = Path(folder) / "trace.jsonl", Path(folder) / "report.jsonl"
        part.write_text("".join(trace.read_text().splitlines(keepends=True)[:requests]))
        script = str(ROOT / "bench/peers/dynamo_replay.py")
        words = [part, speed, prefill, decode, router, NUM_BLOCKS, report]
        subprocess.run([str(python), script, *map(str, words)], env={**os.environ, "DYN_LOG": "error"}, check=True)
        return [json.loads(line)["ttft_ms"] / 1000 for line in report.read_text().splitlines()]
