"""Our router beside sglang-router, smg and litellm, in front of the same echo workers.

    python -m bench.gateways [--requests 1000] [--load-s 8] [--memory-s 60]

Echo workers compute nothing and speak each gateway's dialect (bench/peers/echo_worker.py), so that what is left is the
gateway. Ours takes prompts as token ids (like work: the others pass text through) and, beside it, as chat messages that
it renders and tokenizes. The gateways take turns: 1 in flight for latency, then many for the CPU that a request costs.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeAlias

from bench.load import at_once, one_by_one
from bench.needs import needs
from bench.report import Report, Row, compare

with needs("bench"):
    import uvloop

    from bench.peers.gateways import (
        LITELLM,
        OURS,
        OURS_TEXT,
        RUST,
        Gateway,
        chat_request,
        echo_worker,
        keep_off_the_last_core,
        starters,
    )

Figures: TypeAlias = dict[str, float]

WORKERS = 2
WARM_UP = 50
TURN = 50
"""Requests of one gateway before it is the next one's turn."""
STREAM_TOKENS, STREAM_PACE_S, STREAM_IN_FLIGHT = 64, 0.005, 32
SHORT_IN_FLIGHT = 16
MEMORY_REQUESTS = 100_000
LITELLM_RATIO, RUST_RATIO = 3.0, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="requests for latency, each gateway (default: 1000)")
    parser.add_argument("--load-s", type=float, default=8, help="seconds of each load (default: 8)")
    parser.add_argument("--memory-s", type=float, default=60, help="longest time of each memory run (default: 60)")
    options = parser.parse_args()
    keep_off_the_last_core()
    start = starters()
    figures: dict[str, Figures] = {name: {} for name in start}
    with ExitStack() as stack:
        workers = [stack.enter_context(echo_worker(STREAM_PACE_S)) for _ in range(WORKERS)]
        gateways = {name: stack.enter_context(start[name](workers)) for name in start}
        uvloop.run(latency(gateways, workers, options.requests))
        for name, gateway in gateways.items():
            for part in ("first_token_s", "total_s"):
                for percent in (50, 99):
                    figures[name][f"{part} p{percent}"] = gateway.added_ms(part, percent)
        for name, gateway in gateways.items():
            figures[name] |= uvloop.run(cost(gateway, STREAM_TOKENS, STREAM_IN_FLIGHT, options.load_s, "stream"))
            figures[name] |= uvloop.run(cost(gateway, 1, SHORT_IN_FLIGHT, options.load_s, "short"))
            figures[name] |= uvloop.run(memory(gateway, options.memory_s))
            print(name, {key: round(value, 3) for key, value in figures[name].items()}, flush=True)
    report = Report("gateways", rows(figures), notes(figures))
    report.finish()


async def latency(gateways: dict[str, Gateway], workers: Sequence[int], requests: int) -> None:
    """One request at a time, gateways in turn; directly to a worker just before each turn."""
    for gateway in gateways.values():
        await one_by_one(gateway.port, lambda make=gateway.make: make(1), WARM_UP, 1)  # type: ignore[misc]
    for _ in range(-(-requests // TURN)):
        for gateway in gateways.values():
            gateway.direct += await one_by_one(workers[0], lambda: chat_request("echo", 1), TURN, 1)
            gateway.timings += await one_by_one(gateway.port, lambda make=gateway.make: make(1), TURN, 1)  # type: ignore[misc]


async def cost(gateway: Gateway, num_tokens: int, in_flight: int, seconds: float, name: str) -> Figures:
    """Requests per second of CPU time, and per second."""
    await at_once(gateway.port, lambda: gateway.make(num_tokens), num_tokens, in_flight=in_flight, seconds=1.0)
    before = gateway.cpu_s()
    count, took = await at_once(
        gateway.port, lambda: gateway.make(num_tokens), num_tokens, in_flight=in_flight, seconds=seconds
    )
    return {f"{name} per core": count / (gateway.cpu_s() - before), f"{name} per second": count / took}


async def memory(gateway: Gateway, seconds: float) -> Figures:
    """Resident memory after many requests."""
    before = gateway.memory_mb()
    count, _ = await at_once(
        gateway.port, lambda: gateway.make(1), 1, in_flight=SHORT_IN_FLIGHT, seconds=seconds, most=MEMORY_REQUESTS
    )
    after = gateway.memory_mb()
    grown_kb = 1e3 * (after - before) / (count / 1e3)
    return {"memory before": before, "memory after": after, "memory requests": float(count), "memory grown": grown_kb}


def rows(figures: dict[str, Figures]) -> list[Row]:
    """Each of ours beside each peer."""
    found = []
    peers = [name for name in figures if name not in (OURS, OURS_TEXT)] or [""]
    lines = (
        ("added to the first token, p50, 1 in flight", "ms", "first_token_s p50", True),
        ("added to the first token, p99, 1 in flight", "ms", "first_token_s p99", True),
        ("added to a whole answer of one token, p50, 1 in flight", "ms", "total_s p50", True),
        ("answers of one token, per core", "requests/s", "short per core", False),
        (f"streams of {STREAM_TOKENS} tokens, per core", "requests/s", "stream per core", False),
        (f"memory after {MEMORY_REQUESTS:,} requests, or as many as came (notes)", "MB", "memory after", True),
        ("memory grown per 1,000 requests of new prompts", "kB", "memory grown", True),
    )
    for what, unit, key, less in lines:
        for ours in (name for name in (OURS, OURS_TEXT) if name in figures):
            for peer in peers:
                target = None
                if ours == OURS and peer == LITELLM and not key.startswith(("memory", "first_token_s p99")):
                    target = LITELLM_RATIO
                elif ours == OURS and peer in RUST and key == "first_token_s p50":
                    target = RUST_RATIO
                theirs = figures[peer][key] if peer else None
                name = f"{what}; {ours.removeprefix('penstock, ')}"
                found.append(
                    compare(
                        name, unit, figures[ours][key], theirs, peer or None, less_is_better=less, target_ratio=target
                    )
                )
    return found


def notes(figures: dict[str, Figures]) -> list[str]:
    counts = ", ".join(f"{name} {found['memory requests']:,.0f}" for name, found in figures.items())
    before = ", ".join(f"{name} {found['memory before']:.0f}" for name, found in figures.items())
    rates = ", ".join(f"{name} {found['short per second']:,.0f}" for name, found in figures.items())
    return [
        "gateways run on one core, client and workers on the other; per core means per second of the gateway's CPU",
        "sglang-router and smg pass text through to HTTP workers with their default policy, cache_aware; litellm with "
        "simple-shuffle, one process, no database; ours places by its own policy and, in the rows named text, also "
        "renders the chat template, tokenizes and detokenizes",
        f"requests of the memory run: {counts}; MB before it: {before}",
        f"answers of one token per second, 16 in flight (client and workers in Python are the limit): {rates}",
    ]


if __name__ == "__main__":
    main()
