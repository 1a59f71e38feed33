"""Resident memory of each worker beside what its weights and its KV budget need, after the KV cache was used in full.

    python -m bench.memory [--shapes 5m,135m]

A worker is its HTTP front and its engine process. Resident memory is summed over both, so pages that they share count
twice.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

import psutil

from bench.cluster import Process, running_cluster
from bench.handover import ask_ours
from bench.models import SHAPES, Shape, write_model
from bench.report import Report, Row, compare

KV_BYTES = 256 * 2**20
LIMIT_MB = 600.0
PROMPT_TOKENS = 1000
"""Prompts of this many tokens are sent until they have filled the KV cache more than once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="5m,135m", help="model shapes, separated by commas (default: 5m,135m)")
    arguments = parser.parse_args()
    report = Report("memory", notes=[f"KV budget {KV_BYTES // 2**20} MiB per worker; RSS of front and engine, summed"])
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in arguments.shapes.split(","):
            shape = SHAPES[name]
            model = write_model(shape, Path(folder) / name)
            with running_cluster(model, kv_bytes=KV_BYTES) as cluster:
                report.rows += rows(shape, "prefill", cluster.prefill, "after start")
                report.rows += rows(shape, "decode", cluster.decode, "after start")
                waves = fill_waves(shape)
                asyncio.run(ask_ours(cluster, shape, PROMPT_TOKENS, 2, waves))
                report.rows += rows(shape, "prefill", cluster.prefill, "KV cache used")
                report.rows += rows(shape, "decode", cluster.decode, "KV cache used")
    report.finish()


def fill_waves(shape: Shape) -> int:
    """Waves of two prompts that fill the cache of the small shape partly and of the large one wholly: at most 12."""
    prompts = KV_BYTES // (PROMPT_TOKENS * shape.kv_bytes_per_token()) + 1
    return min(12, prompts // 2 + 1)


def rows(shape: Shape, role: str, worker: Process, when: str) -> list[Row]:
    weights = shape.parameters * 2
    resident = resident_bytes(worker.pid)
    beside = (resident - weights - KV_BYTES) / 1e6
    what = f"{shape.name}, {role} worker, {when}"
    return [
        compare(f"{what}: beside weights and KV budget", "MB", beside, limit=LIMIT_MB),
        compare(f"{what}: resident", "MB", resident / 1e6),
    ]


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and of all that it started."""
    process = psutil.Process(pid)
    return sum(int(each.memory_info().rss) for each in (process, *process.children(recursive=True)))


if __name__ == "__main__":
    main()
