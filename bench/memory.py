"""Resident memory of each worker beside what its weights and its KV budget need, before and after the KV cache is used.

    python -m bench.memory [--shapes 5m,135m]

A worker is its HTTP front and its engine process. Resident memory is summed over both, so pages that they share count
twice. The KV budget is blocks, all resident from the start, and copies of decoding contexts, which only decoding
touches: a prefill worker never does, so that part of its budget is no memory yet. The target is about the whole budget;
a second row subtracts only what was touched. The use of the KV cache: prompts that fill the blocks of both workers more
than once, and so many sequences that decode at the same time that their copies take all room but less than one row.
"""

import argparse
import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.cluster import Process, running_cluster
from bench.handover import ask_ours
from bench.models import SHAPES, Shape, write_model
from bench.needs import needs
from bench.report import Report, Row, compare
from penstock.engine.config import EngineConfig
from penstock.engine.kv.layout import COPIED_SHARE

with needs("bench"):
    import psutil

KV_BYTES = 256 * 2**20
BLOCK_BYTES = int(KV_BYTES / (1 + COPIED_SHARE))
LIMIT_MB = 600.0
SMALLEST_ROW = 256
"""Tokens of the smallest row of copies that the fill uses: a power of two."""


@dataclass(frozen=True)
class Fill:
    """Waves of requests that use the whole KV cache; in each of its sequences' copies fit `row` tokens."""

    row: int
    in_flight: int
    waves: int

    @property
    def prompt_tokens(self) -> int:
        """The fewest for which rows have this size (kernels/context_copies.py: powers of two and what lies halfway)."""
        return self.row * 3 // 4 + 1

    @property
    def output_tokens(self) -> int:
        """As many as fit, so that the first sequence still decodes when the last one begins."""
        return self.row - self.prompt_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="5m,135m", help="model shapes, separated by commas (default: 5m,135m)")
    arguments = parser.parse_args()
    report = Report("memory", notes=[f"KV budget {KV_BYTES // 2**20} MiB per worker; RSS of front and engine, summed"])
    report.notes.append(
        f"of the budget {BLOCK_BYTES / 1e6:.0f} MB are blocks, resident from the start; the rest is for copies of "
        "decoding contexts, and memory only when a decode worker uses it: `what was touched` counts it there alone"
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in arguments.shapes.split(","):
            shape = SHAPES[name]
            model = write_model(shape, Path(folder) / name)
            fill = plan_fill(shape)
            copies = fill.in_flight * fill.row * shape.kv_bytes_per_token()
            report.notes.append(f"{name}: {fill.in_flight} sequences decode at once, copies of {copies / 1e6:.0f} MB")
            with running_cluster(model, kv_bytes=KV_BYTES) as cluster:
                report.rows += rows(shape, "prefill", cluster.prefill, "after start", BLOCK_BYTES)
                report.rows += rows(shape, "decode", cluster.decode, "after start", BLOCK_BYTES)
                asyncio.run(
                    ask_ours(cluster, shape, fill.prompt_tokens, fill.in_flight, fill.waves, fill.output_tokens)
                )
                report.rows += rows(shape, "prefill", cluster.prefill, "KV cache used", BLOCK_BYTES)
                report.rows += rows(shape, "decode", cluster.decode, "KV cache used", BLOCK_BYTES + copies)
    report.finish()


def plan_fill(shape: Shape) -> Fill:
    """The smallest rows of which one batch fills the room for copies, and the waves whose prompts fill the blocks."""
    block_tokens = BLOCK_BYTES // shape.kv_bytes_per_token()
    copied_tokens = int(block_tokens * COPIED_SHARE)
    row = SMALLEST_ROW
    while copied_tokens // row > EngineConfig.max_sequences:
        row *= 2
    in_flight = copied_tokens // row
    return Fill(row, in_flight, block_tokens // (in_flight * Fill(row, in_flight, 1).prompt_tokens) + 1)


def rows(shape: Shape, role: str, worker: Process, when: str, touched_bytes: int) -> list[Row]:
    """`touched_bytes` is how much of the KV budget has been written to."""
    beside = resident_bytes(worker.pid) - shape.parameters * 2
    what = f"{shape.name}, {role} worker, {when}"
    return [
        compare(f"{what}: beside weights and KV budget", "MB", (beside - KV_BYTES) / 1e6, limit=LIMIT_MB),
        compare(f"{what}: beside weights and what was touched", "MB", (beside - touched_bytes) / 1e6),
        compare(f"{what}: resident", "MB", (beside + shape.parameters * 2) / 1e6),
    ]


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and of all that it started."""
    process = psutil.Process(pid)
    return sum(int(each.memory_info().rss) for each in (process, *process.children(recursive=True)))


if __name__ == "__main__":
    main()
