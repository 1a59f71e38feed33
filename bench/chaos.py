"""Streams in a storm: what clients see while workers or routers are killed, frozen or cut off one after the other.

    python -m bench.chaos kill                # also: stop, partition, router, redis
    python -m bench.chaos partition --wire cma
    python -m bench.chaos kill --policy seconds

Two prefill and three decode workers of the demonstration model, 1,000 streams of the stock openai client, 50 at a time:
greedy and seeded ones, with penalties, with two answers. Every max(5 s, twice the longest restart) the next
process is struck, decode and prefill workers in turn (`router`: always the first of two; `redis`: the Redis that two
routers share, frozen and killed in turn, and back empty). Right is what the same
requests gave in peace before: every token and its log-probability, bit by bit. A stream whose router is killed is cut;
its client asks the other router, from the beginning. Requests are placed by least work, which hands over every prompt,
or by seconds, the router's default, which has workers read what others have cached.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.needs import needs
from bench.report import Report, Row, compare
from penstock.demo import MODEL_FOLDER

with needs("dev"):
    from tests.e2e.chaos import Cut, Fault, Freeze, Kill, LoseRedis, Outcome, Size, run_chaos, shared_through
    from tests.e2e.deployment import WIRES, Deployment, Worker
    from tests.e2e.island import archipelago
    from tests.redis_server import running_redis

SCENARIOS = ("kill", "stop", "partition", "router", "redis")
_OF_ROUTERS = ("router", "redis")
POLICIES = ("least-work", "seconds")
NUM_PREFILL, NUM_DECODE = 2, 3
MOST_ERRORS_PERCENT = 0.1
ENGINE: dict[str, Any] = {"block_size": 16, "max_step_tokens": 256, "num_blocks": 2048, "poison": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--wire", choices=WIRES, default="cma", help="how KV moves (default: cma)")
    parser.add_argument("--policy", choices=POLICIES, default=POLICIES[0], help=f"default: {POLICIES[0]}")
    parser.add_argument("--streams", type=int, default=Size.streams, help=f"default: {Size.streams}")
    parser.add_argument("--tokens", type=int, default=Size.max_tokens, help=f"per answer; default: {Size.max_tokens}")
    parser.add_argument("--limit-s", type=float, default=Size.limit_s, help="no stream begins later; default: 600")
    arguments = parser.parse_args()
    size = Size(streams=arguments.streams, max_tokens=arguments.tokens, limit_s=arguments.limit_s)
    with cluster(arguments.scenario, arguments.wire, arguments.policy) as (deployment, fault):
        targets = deployment.routers[:1] if arguments.scenario in _OF_ROUTERS else in_turn(deployment)
        outcome = run_chaos(deployment, targets, fault, size)
        deployment.assert_quiet()
    print(outcome)
    named_policy = "" if arguments.policy == POLICIES[0] else f"-{arguments.policy}"
    report = Report(f"chaos-{arguments.scenario}-{arguments.wire}{named_policy}", module="chaos")
    report.rows = [*rows_of(outcome, arguments.scenario), sourced_row(outcome, arguments.policy)]
    report.notes = [
        f"{NUM_DECODE} decode and {NUM_PREFILL} prefill workers, one thread each, the demonstration model, KV over "
        f"{arguments.wire}; {size.concurrency} streams at a time, {size.max_tokens} tokens per answer; "
        f"policy {arguments.policy}",
    ]
    report.finish()


@contextmanager
def cluster(scenario: str, wire: str, policy: str) -> Iterator[tuple[Deployment, Fault]]:
    """All processes, and what will be done to them."""
    sizes: dict[str, Any] = {
        "prefill": NUM_PREFILL,
        "decode": NUM_DECODE,
        "routers": 2 if scenario in _OF_ROUTERS else 1,
    }
    router: dict[str, Any] = {"policy": policy}
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        fault: Fault = Freeze() if scenario == "stop" else Kill()
        if scenario == "redis":
            redis = stack.enter_context(running_redis(logs))
            fault = LoseRedis(redis)
            router |= shared_through(redis, logs)
        if scenario == "partition":
            names = [f"{role}-{index}" for role in ("prefill", "decode") for index in range(sizes[role])]
            fault = Cut(stack.enter_context(archipelago(names)))
            sizes["place"] = fault.place
        made = Deployment(MODEL_FOLDER, logs, wire=wire, engine=ENGINE, router=router, **sizes)
        yield stack.enter_context(made), fault


def in_turn(deployment: Deployment) -> list[Worker]:
    """A decode worker, a prefill worker, the next decode worker, and so on."""
    prefill = itertools.cycle(deployment.prefill)
    return [worker for decode in deployment.decode * NUM_PREFILL for worker in (decode, next(prefill))]


def rows_of(outcome: Outcome, scenario: str) -> list[Row]:
    """The table of one scenario."""
    streams, restart_s = len(outcome.replies), outcome.restart_s
    errors = 100 * outcome.counts["error"] / streams
    rows = [
        compare("streams", "streams", streams),
        compare("tokens", "tokens", outcome.num_tokens),
        compare("time", "s", outcome.seconds),
        compare("strikes", "strikes", len(restart_s)),
        compare("pause between strikes", "s", outcome.pause_s),
        compare(f"{_RESTART[scenario]} to all workers ready again, mean", "s", statistics.mean(restart_s)),
        compare(f"{_RESTART[scenario]} to all workers ready again, longest", "s", max(restart_s)),
        compare("processes started again", "processes", outcome.num_started),
        compare("placements that failed", "placements", outcome.num_replaced),
        compare("longest gap within a stream", "s", outcome.longest_gap_s),
        *(_none(f"streams with a {what}", "streams", outcome.counts[verdict]) for what, verdict in _FLAWS),
        Row("streams that ended in an error", "%", errors, target=f"ours <= {MOST_ERRORS_PERCENT}"),
    ]
    rows[-1].met = errors <= MOST_ERRORS_PERCENT
    if scenario in _OF_ROUTERS:
        rows.append(compare("streams cut with their router and asked again", "streams", outcome.num_asked_again))
    else:
        rows.append(compare("capacity lost to the strikes", "%", 100 * outcome.capacity_lost))
    return rows


_RESTART = {
    "kill": "from kill",
    "router": "from kill",
    "redis": "from start",
    "stop": "from thaw",
    "partition": "from heal",
}
_FLAWS = (("wrong token", "wrong"), ("duplicated token", "duplicated"), ("hang", "hang"))


def sourced_row(outcome: Outcome, policy: str) -> Row:
    """Whether workers that read from each other's caches were struck, too: least work names no source."""
    row = compare("KV blocks read from other workers' caches", "blocks", outcome.num_sourced_blocks)
    if policy == "seconds":
        row.target, row.met = "ours > 0", outcome.num_sourced_blocks > 0
    return row


def _none(what: str, unit: str, count: int) -> Row:
    return Row(what, unit, count, target="ours = 0", met=count == 0)


if __name__ == "__main__":
    main()
