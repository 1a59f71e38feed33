"""Faults on one worker while many streams run, and what the clients saw of them.

Every case runs the same prompts under a `cache_salt` of its own: no cache remembers them, but the answers are known.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import openai

from tests.e2e.client import Answer, Reply, new_async_client, random_prompt, stream_completion
from tests.e2e.deployment import Deployment, Worker, metrics_of
from tests.e2e.processes import freeze, send_signal, thaw
from tests.e2e.proxy import LoopThread, Proxy, Step, Trap, proxied
from tests.e2e.stopwatch import Stopwatch

NUM_RUNNING = 6
"""Streams that run when the fault comes."""
NUM_LATER = 2
"""Streams that begin right after it."""
PROMPT_TOKENS = 85
FIRED_S = 30.0
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.8, "frequency_penalty": 0.7, "presence_penalty": 0.3},
    {"temperature": 1.0, "n": 2},
)
"""How streams draw their tokens: each must go on as it began, wherever."""

KILL_S = 2.0
FREEZE_S = 5.0
"""Longest silence that a stream may show after a kill or cut, and after a freeze or partition."""


@dataclass(frozen=True)
class Fault:
    """What happens to a worker, and how it is undone where the worker itself does not have to be started again."""

    name: str
    begin: Callable[[Worker, Proxy], None]
    end: Callable[[Worker, Proxy], None]
    limit_s: float
    of_wire: bool = False
    """It breaks the connection, not the process: a frame that was under way has arrived."""


def _signal(number: signal.Signals, *which: int) -> Callable[[Worker, Proxy], None]:
    def send(worker: Worker, _: Proxy) -> None:
        pids = [worker.pids[index] for index in which]
        if number is signal.SIGSTOP:
            freeze(*pids)
        elif number is signal.SIGCONT:
            thaw(*pids)
        else:
            for pid in pids:
                send_signal(pid, number)

    return send


def _heal(_: Worker, proxy: Proxy) -> None:
    proxy.heal()


FRONT, ENGINE = 0, 1

FAULTS = [
    Fault("kill-front", _signal(signal.SIGKILL, FRONT), _heal, KILL_S),
    Fault("kill-engine", _signal(signal.SIGKILL, ENGINE), _heal, KILL_S),
    Fault("cut", lambda _, proxy: proxy.cut(), _heal, KILL_S, of_wire=True),
    *(
        Fault(f"stop-{name}", _signal(signal.SIGSTOP, *which), _signal(signal.SIGCONT, *which), FREEZE_S)
        for name, which in (("front", (FRONT,)), ("engine", (ENGINE,)), ("both", (FRONT, ENGINE)))
    ),
    Fault("partition", lambda _, proxy: proxy.partition(), _heal, FREEZE_S, of_wire=True),
]


class Scene:
    """Two prefill and two decode workers, each behind a proxy, and the answers that are right."""

    def __init__(self, loop: LoopThread, deployment: Deployment, proxies: dict[str, Proxy]) -> None:
        self.deployment = deployment
        self._loop = loop
        self._proxies = proxies
        self._client = loop.run(_new_client(deployment.url))
        self._count = 0
        self.expected = [reply.answers for reply in loop.run(self._undisturbed())]
        for answers in self.expected:
            answers[0].assert_varied()

    def close(self) -> None:
        self._loop.run(self._client.close())

    def strike(self, worker: Worker, fault: Fault, step: Step, count: int = 2) -> "Outcome":
        """Runs all streams and lets the fault hit `worker` at the `count`-th time that a call reaches `step` there."""
        self._count += 1
        return self._loop.run(self._strike(worker, fault, step, count, f"case {self._count}"))

    def again(self) -> "Outcome":
        """Runs all streams anew while the last fault lasts: their silence counts from their beginning."""
        self._count += 1
        return self._loop.run(self._again(f"case {self._count}"))

    def recover(self, worker: Worker, fault: Fault) -> None:
        """Undoes the fault, or starts the worker again, and asserts that nothing is left of it anywhere."""
        proxy = self._proxies[worker.name]
        self._loop.run(_call(lambda: fault.end(worker, proxy)))
        self._loop.run(_call(proxy.heal))
        if fault.name.startswith("kill"):
            worker.process.wait_gone()
        worker.restart()
        self.deployment.wait_ready()
        self.deployment.assert_quiet()
        assert {name: one.num_calls for name, one in self._proxies.items() if one.num_calls} == {}

    async def _undisturbed(self) -> list[Reply]:
        replies = [await self._stream(index, "undisturbed") for index in range(NUM_RUNNING + NUM_LATER)]
        for reply in replies:
            if reply.error is not None:
                raise reply.error
        return replies

    async def _stream(self, index: int, salt: str) -> Reply:
        options: dict[str, Any] = {"max_tokens": 40, "salt": salt, "seed": index, **KINDS[index % len(KINDS)]}
        return await stream_completion(self._client, random_prompt(PROMPT_TOKENS, seed=100 + index), **options)

    async def _strike(self, worker: Worker, fault: Fault, step: Step, count: int, salt: str) -> "Outcome":
        fired = asyncio.Event()
        stopwatches: list[Stopwatch] = []
        replaced = self._replaced()
        proxy = self._proxies[worker.name]

        def fire() -> None:
            fault.begin(worker, proxy)
            stopwatches.append(Stopwatch())
            fired.set()

        before = step in (Step.REQUEST, Step.RELEASED) or (step is Step.LAST and not fault.of_wire)
        proxy.trap = Trap(step, count, fire, before)
        running = [asyncio.create_task(self._stream(index, salt)) for index in range(NUM_RUNNING)]
        async with asyncio.timeout(FIRED_S):
            await fired.wait()
        proxy.trap = None
        new = range(NUM_RUNNING, NUM_RUNNING + NUM_LATER)
        later = [asyncio.create_task(self._stream(index, salt)) for index in new]
        replies = await asyncio.gather(*running, *later)
        readers = [one for one in self.deployment.decode if one is not worker]
        return self._outcome(stopwatches[0], replies, replaced, readers)

    async def _again(self, salt: str) -> "Outcome":
        stopwatch, replaced = Stopwatch(), self._replaced()
        replies = await asyncio.gather(*(self._stream(index, salt) for index in range(NUM_RUNNING + NUM_LATER)))
        return self._outcome(stopwatch, replies, replaced, self.deployment.decode)

    def _outcome(self, stopwatch: Stopwatch, replies: list[Reply], replaced: float, readers: list[Worker]) -> "Outcome":
        quarantined = sum(one.metric("penstock_kv_blocks_quarantined") for one in readers)
        num_replaced = int(self._replaced() - replaced)
        return Outcome(stopwatch.began, stopwatch.stolen_s, replies, self.expected, num_replaced, int(quarantined))

    def _replaced(self) -> float:
        return metrics_of(self.deployment.url).get("penstock_router_failed_placements_total", 0.0)


@dataclass
class Outcome:
    """What the clients saw."""

    struck: float
    stolen_s: float
    """What the host took from this machine meanwhile."""
    replies: list[Reply]
    expected: list[dict[int, Answer]]
    num_replaced: int
    """Placements that failed: how often the fault was felt."""
    num_quarantined: int
    """Blocks of decode workers that a late read may still write to, when the last stream has ended."""
    silences: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.silences = [self._silence(reply) for reply in self.replies if reply.ended > self.struck]

    def __str__(self) -> str:
        failed = sum(reply.error is not None for reply in self.replies)
        longest = max(self.silences, default=0.0)
        return (
            f"{len(self.silences)} streams hit, silent for at most {longest:.2f} s "
            f"(the host took {self.stolen_s:.2f} s), {self.num_replaced} placed again, "
            f"{failed} failed, {self.num_quarantined} blocks quarantined"
        )

    def assert_good(self, limit_s: float) -> None:
        """Right answers, all of them, and no stream was silent for longer than `limit_s` after the fault.

        (5 % of the requests may fail; of the few here that is none.)
        """
        assert self.silences, "the fault came when every stream had ended: this test proves nothing"
        for reply, expected in zip(self.replies, self.expected, strict=True):
            if reply.error is not None:
                raise reply.error
            assert reply.answers == expected
        assert max(self.silences) - self.stolen_s < limit_s

    def _silence(self, reply: Reply) -> float:
        """The longest time after the fault in which a stream gave neither tokens nor an error."""
        times = [self.struck, *(at for at in reply.times if at > self.struck), reply.ended]
        return max(after - before for before, after in pairwise(times))


@contextmanager
def scene(deploy: Callable[..., Deployment], **options: Any) -> Iterator[Scene]:
    """Two workers of each role, with a proxy in front of each."""
    with proxied() as (loop, proxies, reached_at):
        made = Scene(loop, deploy(prefill=2, decode=2, reached_at=reached_at, **options), proxies)
        try:
            yield made
        finally:
            made.close()


async def _call(function: Callable[[], None]) -> None:
    function()


async def _new_client(url: str) -> openai.AsyncOpenAI:
    return new_async_client(url)
