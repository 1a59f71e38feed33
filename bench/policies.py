"""Placement policies on a recorded trace, in the simulator: ours, and nine published ones behind the same protocol.

    python -m bench.policies [--requests 3000] [--shapes 4P+4D,8P+8D,2P+6D] [--loads 0.3,0.6,0.8,1,1.3]

Every policy places the same requests on the same workers: the engine's own scheduler and block pool with modelled step
times (`penstock.simulator`). A load of 1 offers as many prompt tokens as the prefill pool computes when nothing is
cached. Nothing is tuned to the trace: our costs are fitted by the router while it runs, from what the workers report.

The peer of a row is the best single baseline by that row's figure: the one with the best geometric mean over all cells.
With PENSTOCK_BENCH_DYNAMO the same trace also goes through Dynamo's own replay, to check the simulator's scheduler,
block pool and policy: those rows are of other workers, without messages, transfers and queue (bench/dynamo.py).
"""

import argparse
import csv
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any

from bench import dynamo
from bench.processes import ROOT
from bench.report import RESULTS, Report, Row, compare, percentile
from penstock.router.baselines import BASELINES
from penstock.router.config import RouterConfig
from penstock.router.placement.costs import attention_pairs
from penstock.router.placement.guarded import Guarded
from penstock.router.placement.journal import Journal
from penstock.router.placement.objective import Seconds
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, Policy
from penstock.simulator.cluster import ClusterSpec, Fault, simulate
from penstock.simulator.kinds import WorkerKind, find_kind
from penstock.simulator.outcome import Objectives, Summary, summarize
from penstock.simulator.trace import Trace, load_trace

TRACE = ROOT.parent / "shared" / "traces" / "mooncake_conversation_trace.jsonl"
WHERE_TO_GET_IT = "https://github.com/kvcache-ai/Mooncake/tree/main/FAST25-release/traces (conversation_trace.jsonl)"
OURS = "Penstock"
PAIRS = "Penstock, pairs only"
OBJECTIVES = Objectives(ttft_s=2.0, tpot_s=0.05)
DYNAMO_SPEEDS = (1.0, 2.0, 4.0)
"""Up to where the mocker's four prefill workers are busy all the time."""


@dataclass(frozen=True, order=True)
class Cell:
    """One cluster at one load."""

    prefill: int
    decode: int
    load: float

    @property
    def name(self) -> str:
        return f"{self.prefill}P+{self.decode}D, load {self.load:g}"


@dataclass(frozen=True)
class Metric:
    """One figure of a Summary."""

    name: str
    unit: str
    less_is_better: bool

    def of(self, summary: Summary) -> float:
        """Positive, so that geometric means exist: a goodput of nothing counts as one request in 1,000 s."""
        value = float(getattr(summary, self.name))
        return value if self.less_is_better else max(value, 1e-3)

    def gain(self, ours: float, peer: float) -> float:
        """How many times better."""
        return peer / ours if self.less_is_better else ours / peer


METRICS = {
    "TTFT p50": Metric("ttft_p50_s", "s", less_is_better=True),
    "TTFT p90": Metric("ttft_p90_s", "s", less_is_better=True),
    "goodput": Metric("goodput_per_s", "requests/s", less_is_better=False),
}
TPOT = Metric("tpot_s", "s", less_is_better=True)

CALM = ""
STRESSES: dict[str, dict[str, Any]] = {
    "three routers that share reservations": {"routers": 3},
    "three routers that share nothing": {"routers": 3, "share_delay_s": None},
    "events of workers half a second late": {"event_delay_s": 0.5},
    "each minute a worker dies, for 30 s": {
        "faults": tuple(
            Fault(60.0 * minute, url, 30.0) for minute, url in zip(range(1, 60), cycle(["p0", "d0", "p1", "d1"]))
        )
    },
}
"""What a cluster may suffer; all runs of the table are calm."""
STRESSED = Cell(4, 4, 0.8)

Table = Mapping[str, Mapping[Cell, Summary]]
"""By policy and cell."""


def main() -> None:
    arguments = parse_arguments()
    if not arguments.trace.exists():
        raise SystemExit(f"no trace at {arguments.trace}: name it with --trace; it is at {WHERE_TO_GET_IT}")
    names = [OURS, PAIRS, *BASELINES]
    cells = [Cell(prefill, decode, load) for prefill, decode in arguments.shapes for load in arguments.loads]
    jobs = [(cell, name, CALM) for cell in cells for name in names]
    jobs += [(STRESSED, OURS, stress) for stress in (CALM, *STRESSES)]
    with ProcessPoolExecutor(arguments.processes) as pool:
        summaries = list(pool.map(partial(run, arguments.trace, arguments.requests, arguments.kind), jobs))
    table: dict[str, dict[Cell, Summary]] = {name: {} for name in names}
    for (cell, name, _), summary in zip(jobs[: -len(STRESSES) - 1], summaries, strict=False):
        table[name][cell] = summary
    write_cells(table)
    print_means(table)
    report = Report("policies", rows(table) + stress_rows(summaries[-len(STRESSES) - 1 :]))
    report.rows += dynamo_rows(arguments.trace, arguments.requests)
    report.notes += notes(arguments)
    report.finish()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=TRACE, help="a trace of Mooncake's or Azure's form")
    parser.add_argument("--requests", type=int, default=3000, help="the first so many of it; 0: all (default: 3000)")
    parser.add_argument("--shapes", type=shapes, default=shapes("4P+4D,8P+8D,2P+6D"), help="prefill + decode workers")
    parser.add_argument("--loads", type=floats, default=floats("0.3,0.6,0.8,1,1.3"), help="of the prefill pool")
    parser.add_argument("--kind", default="h100x8-70b", help="of all workers (default: h100x8-70b)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at the same time")
    return parser.parse_args()


def shapes(text: str) -> list[tuple[int, int]]:
    found = [re.fullmatch(r"(\d+)P\+(\d+)D", word) for word in text.split(",")]
    if None in found:
        raise argparse.ArgumentTypeError(f"{text!r}: write for example 4P+4D,2P+6D")
    return [(int(match[1]), int(match[2])) for match in found if match]


def floats(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def run(path: Path, requests: int, kind_name: str, job: tuple[Cell, str, str]) -> Summary:
    """One policy in one cell, calm or under one of STRESSES, in a process of its own."""
    cell, name, stress = job
    kind = find_kind(kind_name)
    trace = read(path, requests)
    trace = trace.at_speed(cell.load * cell.prefill * capacity(kind, trace) * trace.duration_s / len(trace.requests))
    ahead_s = RouterConfig.worker_ahead_s if name in (OURS, PAIRS) else None
    spec = ClusterSpec((kind,) * cell.prefill, (kind,) * cell.decode, ahead_s=ahead_s, **STRESSES.get(stress, {}))
    return summarize(simulate(trace, spec, partial(policy, name)).outcomes, OBJECTIVES)


@cache
def read(path: Path, requests: int) -> Trace:
    return load_trace(path).first(requests)


class PairsOnly:
    """Our objective where no decode worker computes a prompt: what the choice of pairs alone is worth."""

    def __init__(self) -> None:
        self._seconds = Seconds()

    def choose(self, request: PlacementRequest, cluster: ClusterSnapshot) -> Placement | None:
        pool = {worker.url for worker in cluster.prefill}  # prompts may also be lent to other decode workers
        placements = self._seconds.candidates(request, cluster)
        return next((placement for placement in placements if placement.prefill in pool), None)


def policy(name: str, journal: Journal) -> Policy:
    if name == PAIRS:
        return PairsOnly()
    return Guarded(journal) if name == OURS else BASELINES[name](1)


def capacity(kind: WorkerKind, trace: Trace) -> float:
    """Requests per second whose prompts one idle worker computes, in chunks and with nothing cached."""
    seconds = 0.0
    for request in trace.requests:
        for begin in range(0, request.prompt_tokens, kind.step_tokens):
            end = min(begin + kind.step_tokens, request.prompt_tokens)
            seconds += kind.step.seconds(end - begin, attention_pairs(end, begin))
    return len(trace.requests) / seconds


def rows(table: Table) -> list[Row]:
    """Means first, then the worst cell, then all cells."""
    means, worst, each = [], [], []
    for title, metric in METRICS.items():
        name = best_baseline(table, metric)
        means.append(
            compare(
                f"geometric mean over {len(table[OURS])} cells: {title}",
                metric.unit,
                mean(table[OURS], metric),
                mean(table[name], metric),
                name,
                less_is_better=metric.less_is_better,
                target_ratio=1.1,
            )
        )
        means.append(
            compare(
                f"the same: time per output token beside the best in {title}",
                TPOT.unit,
                mean(table[OURS], TPOT),
                mean(table[name], TPOT),
                name,
                less_is_better=True,
                target_ratio=0.98,
            )
        )
        pairs = compare(
            f"the same without prompts on decode workers: {title}",
            metric.unit,
            mean(table[PAIRS], metric),
            mean(table[name], metric),
            name,
            less_is_better=metric.less_is_better,
        )
        means.append(pairs)
        gains = {cell: metric.gain(metric.of(table[OURS][cell]), metric.of(table[name][cell])) for cell in table[OURS]}
        cell = min(gains, key=lambda cell: gains[cell])
        worst.append(cell_row(table, cell, title, metric, name, target_ratio=0.97))
        each += [cell_row(table, cell, title, metric, name) for cell in sorted(gains)]
    return [*means, *worst, *each]


def cell_row(
    table: Table, cell: Cell, title: str, metric: Metric, name: str, *, target_ratio: float | None = None
) -> Row:
    ours, peer = table[OURS][cell], table[name][cell]
    load = f"{ours.offered_per_s:.2f} requests/s offered, {ours.completed_per_s:.2f} completed"
    what = f"worst cell, {cell.name}: {title}" if target_ratio else f"{cell.name} ({load}): {title}"
    row = compare(
        what,
        metric.unit,
        metric.of(ours),
        metric.of(peer),
        name,
        less_is_better=metric.less_is_better,
        target_ratio=target_ratio,
    )
    if target_ratio is None:
        row.ratio = None  # the means and the worst cells say it; a ratio would bring every cell into the README
    return row


def mean(summaries: Mapping[Cell, Summary], metric: Metric) -> float:
    """Geometric, over all cells."""
    return math.exp(sum(math.log(metric.of(each)) for each in summaries.values()) / len(summaries))


def best_baseline(table: Table, metric: Metric) -> str:
    order = min if metric.less_is_better else max
    return order((name for name in table if name not in (OURS, PAIRS)), key=lambda name: mean(table[name], metric))


def stress_rows(summaries: Sequence[Summary]) -> list[Row]:
    """Ours, calm and under each stress."""
    calm, *stressed = summaries
    found = []
    for stress, summary in zip(STRESSES, stressed, strict=True):
        for title, metric in METRICS.items():
            what = f"{STRESSED.name}, {stress} ({summary.failed} failed): {title}"
            found.append(Row(what, metric.unit, metric.of(summary), metric.of(calm), "the same, calm"))
    return found


def dynamo_rows(path: Path, requests: int) -> list[Row]:
    """Our simulator made to be Dynamo's replay, beside that replay."""
    python = dynamo.peer_python()
    if python is None:
        print(dynamo.HOW_TO_INSTALL)
        return []
    found = []
    for speed in DYNAMO_SPEEDS:
        peer = percentile(dynamo.replay(python, path, requests, speed, 4, 4, "kv_router"), 50)
        trace = load_trace(path).first(requests).at_speed(speed)
        ours = percentile(dynamo.ours(trace, 4, 4, BASELINES["Dynamo cost"](1)), 50)
        row = Row(f"the simulator as Dynamo's replay, 4P+4D, speed {speed:g}: TTFT p50", "s", ours, peer, "replay")
        row.target, row.met = "within 15 % of the peer", abs(ours / peer - 1) <= 0.15
        found.append(row)
    return found


def write_cells(table: Table) -> None:
    """All figures of all policies in all cells: bench/results/policies.csv."""
    with (RESULTS / "policies.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        first = next(iter(table[OURS].values()))
        writer.writerow(["prefill", "decode", "load", "policy", *asdict(first)])
        for cell in sorted(table[OURS]):
            for name in table:
                figures = (f"{value:.5g}" for value in asdict(table[name][cell]).values())
                writer.writerow([cell.prefill, cell.decode, cell.load, name, *figures])


def print_means(table: Table) -> None:
    columns = {**METRICS, "TPOT": TPOT}
    print(f"{'geometric means':22}" + "".join(f"{title:>12}" for title in columns))
    for name, summaries in table.items():
        print(f"{name:22}" + "".join(f"{mean(summaries, metric):12.4g}" for metric in columns.values()))


def notes(arguments: argparse.Namespace) -> Iterable[str]:
    kind = find_kind(arguments.kind)
    count = arguments.requests or "all"
    yield f"trace {arguments.trace.stem}, {count} requests from its beginning; Mooncake, Apache-2.0"
    yield f"all workers are of kind {kind.name}: {kind.source}; what `penstock plan` knows too"
    yield (
        f"goodput: requests per second with TTFT <= {OBJECTIVES.ttft_s:g} s and a mean time per output token "
        f"<= {1000 * OBJECTIVES.tpot_s:g} ms; completed: those that ended while requests still arrived"
    )
    yield (
        f"with our policy a worker is given {RouterConfig.worker_ahead_s:g} s of prompts ahead and the rest waits in "
        "the router, as it does in a cluster; baselines place what comes at once, as their routers do"
    )
    yield "baselines know all caches exactly, where some originals guess"
    yield "bench/results/policies.csv has every policy in every cell"


if __name__ == "__main__":
    main()
