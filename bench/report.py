"""What every benchmark prints and writes: one table, one JSON file in bench/results with the same rows."""

import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One measured figure, beside the peer's of the same run where there is one."""

    what: str
    unit: str
    ours: float | None
    peer: float | None = None
    peer_name: str | None = None
    ratio: float | None = None
    """How many times better ours is: better when larger, whatever the unit."""
    target: str | None = None
    """What an issue asks for, as `ratio >= 1.5` or `ours < 10`."""
    met: bool | None = None


def compare(
    what: str,
    unit: str,
    ours: float | None,
    peer: float | None = None,
    peer_name: str | None = None,
    *,
    less_is_better: bool = False,
    target_ratio: float | None = None,
    limit: float | None = None,
) -> Row:
    """A row with its ratio and whether it meets `target_ratio` (against the peer) or stays under `limit`."""
    row = Row(what, unit, ours, peer, peer_name)
    if ours is not None and peer is not None and ours > 0 and peer > 0:
        row.ratio = peer / ours if less_is_better else ours / peer
    if target_ratio is not None:
        row.target = f"ratio >= {target_ratio:g}"
        row.met = None if row.ratio is None else row.ratio >= target_ratio
    if limit is not None:
        row.target = f"ours < {limit:g}"
        row.met = None if ours is None else ours < limit
    return row


@dataclass
class Report:
    """The rows of one benchmark."""

    name: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader must know to judge the rows: configurations, what was left out and why."""
    module: str = ""
    """Of bench, where it is not called as the result is."""

    def finish(self) -> None:
        """Prints the table and writes bench/results/NAME.json."""
        print("\n" + table(self.rows))
        for note in self.notes:
            print(f"note: {note}")
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(self._as_json(), indent=2) + "\n")
        print(f"written to {path.relative_to(RESULTS.parents[1])}")

    def _as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(),
            "command": shlex.join(["python", "-m", f"bench.{self.module or self.name}", *sys.argv[1:]]),
            "rows": [{key: _rounded(value) for key, value in asdict(row).items()} for row in self.rows],
            "notes": self.notes,
        }


def table(rows: Sequence[Row]) -> str:
    header = ("what", "unit", "ours", "peer", "ratio", "target", "met")
    lines = [header]
    for row in rows:
        peer = f"{_shown(row.peer)} ({row.peer_name})" if row.peer is not None else "-"
        met = {True: "yes", False: "NO", None: "-"}[row.met]
        ratio = f"{row.ratio:.2f}x" if row.ratio is not None else "-"
        lines.append((row.what, row.unit, _shown(row.ours), peer, ratio, row.target or "-", met))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between the closest ranks."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=1000, method="inclusive")[max(0, min(998, round(percent * 10) - 1))]


def commit() -> str:
    """The commit that was measured, with `-dirty` where the tree differed from it, but for results."""
    name = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)bench/results")
    return f"{name}-dirty" if changed else name or "unknown"


def _git(*words: str) -> str:
    """What git says; nothing where this is no repository."""
    result = subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def machine() -> str:
    """Processor, cores, memory, and how busy it was: a figure from a busy machine is worth less."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "?")
    bf16 = ", avx512_bf16" if "avx512_bf16" in cpuinfo else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[1]
    return (
        f"{model}{bf16}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, load average over 5 minutes at the end {load:.1f}"
    )


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
