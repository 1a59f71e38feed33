"""`penstock plan`: the cheapest cluster that answers a recorded trace as well as asked.

More workers never do worse (but for noise), so the plans worth a look are a staircase: for each number of prefill
workers the fewest decode workers. No prefill worker at all is its first step: decode workers then compute the prompts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from penstock.router.config import RouterConfig
from penstock.router.placement.guarded import Guarded
from penstock.simulator.cluster import ClusterSpec, simulate
from penstock.simulator.config import PlanConfig
from penstock.simulator.kinds import WorkerKind, find_kind
from penstock.simulator.outcome import Objectives, Summary, summarize
from penstock.simulator.trace import Trace, load_trace

HEADER = ("prefill", "decode", "cost per hour", "good", "TTFT p50", "TTFT p90", "time per token", "from cache")


@dataclass(frozen=True)
class Plan:
    """One cluster, and how it did."""

    num_prefill: int
    num_decode: int
    spec: ClusterSpec
    summary: Summary
    is_good: bool
    """Enough requests got a good answer."""

    def cells(self) -> tuple[str, ...]:
        """One row under HEADER."""
        summary = self.summary
        return (
            f"{self.num_prefill} x {self.spec.prefill[0].name}" if self.num_prefill else "none",
            f"{self.num_decode} x {self.spec.decode[0].name}",
            f"{self.spec.price_per_hour:,.2f}",
            f"{100 * good_share(summary):.1f} %",
            f"{summary.ttft_p50_s:.3f} s",
            f"{summary.ttft_p90_s:.3f} s",
            f"{1000 * summary.tpot_s:.1f} ms",
            f"{100 * summary.cached_share:.0f} %",
        )


Try = Callable[[int, int], Plan]
"""Simulates that many prefill and decode workers."""


def run_plan(config: PlanConfig) -> int:
    """Prints the plans and the cheapest of them. Exit status 1: none is good enough."""
    trace = load_trace(Path(config.trace)).first(config.requests).at_speed(config.speed)
    kinds = [(find_kind(p), find_kind(d)) for p in config.prefill.split(",") for d in config.decode.split(",")]
    print(describe(config, trace, kinds))
    found: list[Plan] = []
    for prefill, decode in kinds:
        attempt = partial(try_plan, trace, prefill, decode, config)
        most = attempt(config.max_workers, config.max_workers)
        if most.is_good:
            found += staircase(attempt, prefill.price_per_hour, decode.price_per_hour, config.max_workers)
        else:
            print(f"not even {config.max_workers} + {config.max_workers} workers are good enough:")
            print(table([HEADER, most.cells()]))
    if not found:
        return 1
    print(table([HEADER, *(plan.cells() for plan in found)]))
    best = min(found, key=lambda plan: (plan.spec.price_per_hour, -good_share(plan.summary)))
    prefill_text, decode_text, cost, *_ = best.cells()
    print(f"\ncheapest: {prefill_text} for prefill, {decode_text} for decode, {cost} per hour")
    return 0


def try_plan(
    trace: Trace, prefill: WorkerKind, decode: WorkerKind, config: PlanConfig, num_prefill: int, num_decode: int
) -> Plan:
    """Replays the trace with the router's own policy and queue."""
    spec = ClusterSpec((prefill,) * num_prefill, (decode,) * num_decode, ahead_s=RouterConfig.worker_ahead_s)
    summary = summarize(simulate(trace, spec, Guarded).outcomes, Objectives(config.ttft, config.tpot))
    return Plan(num_prefill, num_decode, spec, summary, is_good=100 * good_share(summary) >= config.good)


def good_share(summary: Summary) -> float:
    return summary.goodput_per_s / summary.offered_per_s


def staircase(attempt: Try, prefill_price: float, decode_price: float, most: int) -> Iterator[Plan]:
    """For 0, 1, 2, ... prefill workers the plan with the fewest decode workers, as long as that makes them fewer.

    Stops where the prefill workers alone cost as much as the cheapest plan so far.
    """
    cheapest, fewest = float("inf"), most + 1
    for num_prefill in range(most + 1):
        if num_prefill * prefill_price + decode_price > cheapest or fewest == 1:
            return
        plan = _fewest_decode(attempt, num_prefill, fewest - 1)
        if plan is not None:
            fewest = plan.num_decode
            cheapest = min(cheapest, plan.spec.price_per_hour)
            yield plan


def _fewest_decode(attempt: Try, num_prefill: int, most: int) -> Plan | None:
    """By doubling, then halving; None when `most` are not good enough."""
    too_few, plan = 0, attempt(num_prefill, 1)
    while not plan.is_good:
        if plan.num_decode == most:
            return None
        too_few, plan = plan.num_decode, attempt(num_prefill, min(2 * plan.num_decode, most))
    while plan.num_decode - too_few > 1:
        middle = attempt(num_prefill, (too_few + plan.num_decode) // 2)
        if middle.is_good:
            plan = middle
        else:
            too_few = middle.num_decode
    return plan


def describe(config: PlanConfig, trace: Trace, kinds: list[tuple[WorkerKind, WorkerKind]]) -> str:
    """What the table below it is about."""
    requests = trace.requests
    prompt = sum(each.prompt_tokens for each in requests) / len(requests)
    output = sum(each.output_tokens for each in requests) / len(requests)
    lines = [
        f"{trace.name}: {len(requests):,} requests, {len(requests) / max(trace.duration_s, 1e-9):.2f} per second, "
        f"on average {prompt:,.0f} tokens in and {output:,.0f} out",
        f"good: first token within {config.ttft:g} s, then {1000 * config.tpot:g} ms per token; "
        f"for {config.good:g} % of the requests",
    ]
    named = {kind.name: kind for pair in kinds for kind in pair}
    lines += [f"{kind.name}: {kind.source}; {kind.price_per_hour:,.2f} per hour" for kind in named.values()]
    return "\n".join(lines) + "\n"


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
