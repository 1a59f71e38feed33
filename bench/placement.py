"""How long a placement takes: the snapshot and the choice, for 100,000-token prompts over 64 workers.

    python -m bench.placement [--decisions 3000]

Before every decision every worker reports a step, so that no part of the snapshot is left over from the last one. Each
request has a cached part on a third of the workers, every worker has a queue or streams, and memory is full: nothing
makes the choice easy. Tokenizing and hashing are not in it; looking up the prefix is bench.index.
"""

import argparse
import random
import time

from bench.report import Report, compare, percentile
from penstock.protocol import Events, Load, StepTiming
from penstock.router.placement.books import About, Booking, Books
from penstock.router.placement.objective import Seconds
from penstock.router.policy import PlacementRequest

WORKERS = (8, 64)
PROMPT_TOKENS = 100_000
LIMIT_MS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=3000, help="of each kind (default: 3000)")
    arguments = parser.parse_args()
    report = Report("placement")
    for workers in WORKERS:
        times = measure(workers, arguments.decisions)
        what, limit = f"{workers} workers: one decision", LIMIT_MS if workers == 64 else None
        report.rows += [
            compare(f"{what}, p50", "ms", percentile(times, 50)),
            compare(f"{what}, p99", "ms", percentile(times, 99), limit=limit),
        ]
    report.finish()


def measure(num_workers: int, decisions: int) -> list[float]:
    """Milliseconds of each decision."""
    rng = random.Random(1)
    books, policy = Books(), Seconds()
    urls = [f"http://10.0.0.{number}:8100" for number in range(num_workers)]
    for number, url in enumerate(urls):
        books.open(url, "prefill" if number % 2 else "decode", node=f"node-{number // 8}")
        books.describe(url, About("kind", 16, 8192))
    bookings: list[Booking] = []
    times: list[float] = []
    for number in range(decisions):
        now_s = number * 0.05
        for url in urls:
            books.observed(url, report_of_a_step(rng))
        held = {url: rng.randrange(PROMPT_TOKENS) for url in rng.sample(urls, num_workers // 3)}
        request = PlacementRequest(PROMPT_TOKENS - rng.randrange(10_000), held, output_tokens=300)
        began = time.perf_counter()
        placement = policy.choose(request, books.snapshot(urls, now_s))
        times.append(1e3 * (time.perf_counter() - began))
        assert placement is not None
        bookings.append(books.book(placement, request, now_s))
        if len(bookings) > 4 * num_workers:
            bookings.pop(rng.randrange(len(bookings))).release(now_s)
    return times


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
