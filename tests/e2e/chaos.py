"""Many streams while one process after the other is killed, frozen or cut off: what the clients saw, and what it cost.

The same requests were answered before in peace: that is what they must give now, token for token and bit for bit.
"""

import asyncio
import hashlib
import itertools
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import openai

from tests.e2e.client import API_KEY, Answer, Reply, new_async_client, random_prompt, stream_completion
from tests.e2e.deployment import Deployment, Router, Worker, metrics_of
from tests.e2e.faults import KINDS
from tests.e2e.island import Archipelago
from tests.e2e.processes import Running, eventually, freeze, send_signal, thaw
from tests.redis_server import RedisServer

HANG_S = 30.0
"""A stream that has not ended after so long hangs. The deadline of a request is ten minutes."""
LEAST_PAUSE_S = 5.0
HOLD_S = 4.0
"""How long a process stays frozen or cut off: long enough to be taken for lost, which takes 1.5 s."""

_SHARED = random_prompt(96, seed=99)
"""Some prompts begin alike, so that caches are hit."""


@dataclass(frozen=True)
class Size:
    """How much of it."""

    streams: int = 1000
    concurrency: int = 50
    max_tokens: int = 48
    distinct: int = 40
    """Requests that differ; they come again and again, half of them under a salt of the lap, so that no cache has
    their prompts."""
    limit_s: float = 600.0
    """No stream begins later."""


class Target(Protocol):
    """A worker or a router."""

    name: str
    process: Running

    def restart(self) -> None: ...


class Fault(Protocol):
    """What is done to a process, for how long, and how that ends."""

    hold_s: float

    def begin(self, target: Target) -> None: ...
    def end(self, target: Target) -> None: ...


class Kill:
    """SIGKILL to the front, the next time to the engine; started again at once."""

    hold_s = 0.0

    def __init__(self) -> None:
        self._count = 0

    def begin(self, target: Target) -> None:
        pids = target.process.pids
        send_signal(pids[self._count % len(pids)], signal.SIGKILL)
        self._count += 1

    def end(self, target: Target) -> None:
        target.process.wait_gone()


class Freeze:
    """SIGSTOP to front and engine."""

    hold_s = HOLD_S

    def begin(self, target: Target) -> None:
        freeze(*target.process.pids)

    def end(self, target: Target) -> None:
        thaw(*target.process.pids)


class Cut:
    """No packet passes to or from the worker. The deployment's `place` must be this one's."""

    hold_s = HOLD_S

    def __init__(self, islands: Archipelago) -> None:
        self._islands = islands

    def place(self, name: str) -> Mapping[str, Any]:
        """Every worker on an island of its own."""
        address, device = self._islands.there(name)
        return {
            "host": address,
            "namespace": self._islands.namespace(name),
            "environment": {"UCX_NET_DEVICES": device},
        }

    def begin(self, target: Target) -> None:
        self._islands.partition(target.name)

    def end(self, target: Target) -> None:
        self._islands.heal(target.name)


class LoseRedis:
    """What the routers share is away, silent the first time and dead the next, and comes back empty."""

    hold_s = HOLD_S

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis
        self._count = 0

    def begin(self, _: Target) -> None:
        if self._count % 2:
            self._redis.kill()
        else:
            self._redis.freeze()
        self._count += 1

    def end(self, _: Target) -> None:
        self._redis.kill()
        self._redis.start()


class Striker(threading.Thread):
    """Strikes one target after the other, every max(LEAST_PAUSE_S, twice the longest restart so far)."""

    def __init__(self, deployment: Deployment, targets: Sequence[Target], fault: Fault) -> None:
        super().__init__(daemon=True)
        self.away_s: list[float] = []
        """Per strike: from its begin until every router found every worker ready again."""
        self.restart_s: list[float] = []
        """The part of it that came after the fault was over."""
        self.num_started = 0
        """Processes that had ended and were started again: those killed, and any that UCX aborted."""
        self.pause_s = LEAST_PAUSE_S
        self.error: Exception | None = None
        self._deployment = deployment
        self._targets = itertools.cycle(targets)
        self._fault = fault
        self._over = threading.Event()
        self._sourced: dict[tuple[str, tuple[int, ...]], float] = {}
        """Blocks read from others' caches, by worker and by its lives."""

    def run(self) -> None:
        try:
            while not self._over.wait(self.pause_s - (self.away_s[-1] if self.away_s else 0.0)):
                self._strike(next(self._targets))
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        """Returns when all that was struck is back. Raises what went wrong."""
        self._over.set()
        self.join()
        if self.error is not None:
            raise self.error
        self._look()

    @property
    def num_sourced_blocks(self) -> int:
        """Blocks that workers read from others' caches, as their counters said before each strike and at the end."""
        return int(sum(self._sourced.values()))

    def _look(self) -> None:
        for worker in self._deployment.workers:
            with suppress(OSError):  # it has just died
                self._sourced[worker.name, worker.pids] = worker.metric("penstock_sourced_blocks_total")

    def _strike(self, target: Target) -> None:
        self._look()
        began = time.monotonic()
        self._fault.begin(target)
        time.sleep(self._fault.hold_s)
        over = time.monotonic() if self._fault.hold_s else began
        self._fault.end(target)
        eventually(self._all_back, "the return of all processes", pause_s=0.1)
        self.away_s.append(time.monotonic() - began)
        self.restart_s.append(time.monotonic() - over)
        self.pause_s = max(LEAST_PAUSE_S, 2 * max(self.restart_s))

    def _all_back(self) -> bool:
        """Starts again whatever has ended, as a supervisor would."""
        for each in self._deployment.members:
            if not each.process.alive:
                self.num_started += 1
                each.restart()
        return self._deployment.all_ready()


@dataclass
class Outcome:
    """What a run came to."""

    replies: list[Reply]
    expected: list[dict[int, Answer]]
    """Of stream i: the (i modulo its length)-th."""
    seconds: float
    away_s: list[float]
    restart_s: list[float]
    pause_s: float
    num_workers: int
    num_started: int
    num_asked_again: int
    """Streams that a killed router had cut; the client asked the other one."""
    num_replaced: int
    """Placements that failed, by the routers' count: how often the faults were felt."""
    num_sourced_blocks: int
    """KV blocks that workers read from others' caches."""
    counts: Counter[str] = field(init=False)
    """Streams by verdict: right, wrong, duplicated, hang, error."""

    def __post_init__(self) -> None:
        self.counts = Counter(
            verdict(reply, self.expected[index % len(self.expected)]) for index, reply in enumerate(self.replies)
        )

    @property
    def num_tokens(self) -> int:
        return sum(len(answer.tokens) for reply in self.replies for answer in reply.answers.values())

    @property
    def capacity_lost(self) -> float:
        """Part of all workers' time in which one was away, 0 to 1."""
        return sum(self.away_s) / (self.num_workers * self.seconds)

    @property
    def longest_gap_s(self) -> float:
        """The longest that any stream stood still."""
        gaps = (after - before for reply in self.replies for before, after in pairwise(reply.times))
        return max(gaps, default=0.0)

    def __str__(self) -> str:
        return (
            f"{len(self.replies)} streams, {self.num_tokens} tokens in {self.seconds:.0f} s: {dict(self.counts)}; "
            f"{len(self.away_s)} strikes every {self.pause_s:.1f} s, restart {statistics.mean(self.restart_s):.2f} s; "
            f"{self.num_started} processes started again, {self.num_replaced} requests placed again, "
            f"{self.num_asked_again} asked again, {self.num_sourced_blocks} blocks read from others' caches, "
            f"longest gap {self.longest_gap_s:.2f} s"
            + "".join(f"\n  stream {index}: {reply.error!r}" for index, reply in enumerate(self.replies) if reply.error)
        )


def verdict(reply: Reply, expected: dict[int, Answer]) -> str:
    """What became of one stream. Whatever its end: tokens that came must be those that had to come."""
    for index, answer in reply.answers.items():
        right = expected[index].tokens
        if answer.tokens != right[: len(answer.tokens)]:
            return "wrong" if len(answer.tokens) <= len(right) else "duplicated"
    if is_hang(reply):
        return "hang"
    if reply.error is not None:
        return "error"
    return "right" if reply.answers == expected else "wrong"


def is_hang(reply: Reply) -> bool:
    return isinstance(reply.error, TimeoutError | openai.APITimeoutError)


def is_cut(reply: Reply) -> bool:
    """The connection broke (an error of the SDK's, or of the HTTP library below it); nobody said why."""
    explicit = isinstance(reply.error, openai.APIError) and not isinstance(reply.error, openai.APIConnectionError)
    return reply.error is not None and not explicit and not is_hang(reply)


def run_chaos(deployment: Deployment, targets: Sequence[Worker | Router], fault: Fault, size: Size) -> Outcome:
    """All streams, with the targets struck in turn for as long as they run."""
    expected = [reply.answers for reply in asyncio.run(_in_peace(deployment, size))]
    replaced = _replaced(deployment)
    striker = Striker(deployment, targets, fault)
    began = time.monotonic()
    striker.start()
    replies, num_asked_again = asyncio.run(_storm([router.url for router in deployment.routers], size))
    seconds = time.monotonic() - began
    striker.stop()
    return Outcome(
        replies=replies,
        expected=expected,
        seconds=seconds,
        away_s=striker.away_s,
        restart_s=striker.restart_s,
        pause_s=striker.pause_s,
        num_started=striker.num_started,
        num_workers=len(deployment.workers),
        num_asked_again=num_asked_again,
        num_replaced=int(_replaced(deployment) - replaced),
        num_sourced_blocks=striker.num_sourced_blocks,
    )


async def _in_peace(deployment: Deployment, size: Size) -> list[Reply]:
    async with new_async_client(deployment.url) as client:
        replies = [await _stream(client, index, "in peace", size) for index in range(size.distinct)]
    for reply in replies:
        if reply.error is not None:
            raise reply.error
    seen = [tuple(answer.tokens) for reply in replies for answer in reply.answers.values()]
    assert len(set(seen)) == len(seen), "equality of answers that are all alike would prove nothing"
    return replies


async def _storm(urls: list[str], size: Size) -> tuple[list[Reply], int]:
    """All streams in order, `concurrency` at a time, at the routers in turn; and how many asked a second router."""
    clients = [new_async_client(url, HANG_S) for url in urls]
    numbers = iter(range(size.streams))
    over = time.monotonic() + size.limit_s
    replies: dict[int, Reply] = {}
    asked_again = 0

    async def client() -> None:
        nonlocal asked_again
        for number in numbers:
            lap, index = divmod(number, size.distinct)
            salt = f"lap {lap}" if number % 2 else ""
            reply = await _stream(clients[number % len(clients)], index, salt, size)
            if len(clients) > 1 and is_cut(reply):
                asked_again += 1
                reply = await _stream(clients[(number + 1) % len(clients)], index, salt, size)
            replies[number] = reply
            if time.monotonic() > over:
                return

    await asyncio.gather(*(client() for _ in range(size.concurrency)))
    await asyncio.gather(*(each.close() for each in clients))
    return [replies[number] for number in sorted(replies)], asked_again


async def _stream(client: openai.AsyncOpenAI, index: int, salt: str, size: Size) -> Reply:
    prompt = _SHARED[: 32 * (index % 4)] + random_prompt(16 + 11 * (index % 9), seed=index)
    options = {"max_tokens": size.max_tokens, "seed": index, "salt": salt, **KINDS[index % len(KINDS)]}
    try:
        async with asyncio.timeout(HANG_S):
            return await stream_completion(client, prompt, **options)
    except TimeoutError as error:
        return Reply(error=error)


def shared_through(redis: RedisServer, folder: Path) -> dict[str, Any]:
    """Router settings: everything goes through Redis, also the quota of these tests' own API key."""
    keys = folder / "keys.toml"
    digest = hashlib.sha256(API_KEY.encode()).hexdigest()
    keys.write_text(
        f'[test]\nkey_sha256 = ["{digest}"]\nrequests_per_minute = 1000000\ntokens_per_minute = 100000000\n'
    )
    return {"redis": redis.url, "keys": str(keys)}


def _replaced(deployment: Deployment) -> float:
    return sum(metrics_of(each.url).get("penstock_router_failed_placements_total", 0.0) for each in deployment.routers)
