"""How long a placement takes: prompts of 100,000 tokens, 64 workers, a million indexed blocks.

    python -m bench.placement [--decisions 3000]

A decision is to match the prompt, to take the snapshot and to choose; tokenizing and hashing come before. Before every
decision every worker reports a step, so that no part of the snapshot is left over from the last one; every worker has
a part of the prompt, a queue or streams, and no memory that is not full of cached blocks: nothing makes it easy.

A turn that finds no room is what a queued request costs at most when it is tried: each of the workers is full.
"""

import argparse
import gc
import random
import time

from msgspec import structs

from bench.prefix_index import BLOCK_TOKENS, million_blocks
from bench.report import Report, compare, percentile
from penstock.protocol import Events, Load, StepTiming
from penstock.router.flow.room import Room
from penstock.router.flow.turns import Busy, Turn, take_turn
from penstock.router.index.keys import PromptKeys
from penstock.router.placement.books import About, Booking, Books
from penstock.router.placement.objective import Seconds
from penstock.router.policy import ClusterSnapshot, PlacementRequest, WorkerState

LIMIT_MS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=3000, help="of each kind (default: 3000)")
    arguments = parser.parse_args()
    report = Report("placement")
    matching, deciding = measure(arguments.decisions)
    both = [sum(times) for times in zip(matching, deciding, strict=True)]
    for what, times in (("match the prompt", matching), ("snapshot and choice", deciding), ("one decision", both)):
        limit = LIMIT_MS if times is both else None
        report.rows += [
            compare(f"{what}, p50", "ms", percentile(times, 50)),
            compare(f"{what}, p99", "ms", percentile(times, 99), limit=limit),
        ]
    turns = measure_turns(arguments.decisions)
    for share in (50, 99):
        report.rows.append(compare(f"a turn that finds no room, p{share}", "ms", percentile(turns, share)))
    report.finish()


def measure_turns(turns: int) -> list[float]:
    """Milliseconds of each: prefill workers have prompts enough, decode workers hold no memory that is free."""
    policy, wanted = Seconds(), PlacementRequest(100_000, {"d0": 50_000, "p1": 90_000}, output_tokens=300)
    busy = WorkerState("", num_tokens=10**6, streams=20, max_streams=64, prefill_tokens=10**5, prompts=1)
    cluster = ClusterSnapshot(
        prefill=tuple(structs.replace(busy, url=f"p{number}", role="prefill") for number in range(32)),
        decode=tuple(structs.replace(busy, url=f"d{number}") for number in range(32)),
    )
    times = []
    for _ in range(turns):
        began = time.perf_counter()
        found = take_turn(lambda request: policy.choose(request, cluster), wanted, cluster, Room(0.25), Turn())
        times.append(1e3 * (time.perf_counter() - began))
        assert isinstance(found, Busy)
    return times


def measure(decisions: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each match, and of each choice."""
    rng = random.Random(1)
    books, policy = Books(), Seconds()
    index, urls, tokens = million_blocks()
    keys = PromptKeys("", tokens)
    keys.of(BLOCK_TOKENS)
    gc.freeze()  # the index is made by the millions here, and over hours in a router: the collector must not walk it
    for number, url in enumerate(urls):
        books.open(url, "prefill" if number % 2 else "decode", node=f"node-{number // 8}")
        books.describe(url, About("kind", 16, 8192))
    bookings: list[Booking] = []
    matching: list[float] = []
    deciding: list[float] = []
    for number in range(decisions):
        now_s = number * 0.05
        for url in urls:
            books.observed(url, report_of_a_step(rng), now_s)
        began = time.perf_counter()
        request = PlacementRequest(len(tokens), index.match(keys), output_tokens=300)
        matched = time.perf_counter()
        placement = policy.choose(request, books.snapshot(urls, now_s))
        matching.append(1e3 * (matched - began))
        deciding.append(1e3 * (time.perf_counter() - matched))
        assert placement is not None
        bookings.append(books.book(placement, request, now_s))
        if len(bookings) > 4 * len(urls):
            bookings.pop(rng.randrange(len(bookings))).release(now_s)
    return matching, deciding


def report_of_a_step(rng: random.Random) -> Events:
    """One decoding step on a worker whose memory is full of cached blocks."""
    running = rng.randint(1, 60)
    context = running * rng.randint(1000, 20_000)
    timing = StepTiming(0, running, context, 0.01 + 1e-5 * running + 9e-8 * context)
    free = rng.randrange(4000)
    load = Load(running=running, free_blocks=free, evictable_blocks=free, num_blocks=80_000, context_tokens=context)
    return Events(generation="g", sequence=0, load=load, timings=(timing,))


if __name__ == "__main__":
    main()
