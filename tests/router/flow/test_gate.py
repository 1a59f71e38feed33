"""The gate in virtual time, before modelled workers: order, refusals, and promises that are kept."""

import asyncio
import heapq
import itertools
import random
import statistics
from dataclasses import dataclass, field
from typing import Any

import pytest

from penstock.errors import Overloaded, RateLimited, RetryableError
from penstock.router.flow.admission import Bounds, Claim
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.gate import Gate
from penstock.router.flow.patience import Patience
from penstock.router.flow.room import Limits, Room
from penstock.router.flow.tenants import ANYONE, Tenant
from penstock.router.flow.turns import Busy, Turn, take_turn
from penstock.router.placement.costs import StepCost
from penstock.router.placement.objective import Seconds
from penstock.router.policy import ClusterSnapshot, Picked, Placement, PlacementRequest, WorkerState
from tests.router.flow.virtual_time import run

A, B, GREEDY = Tenant(name="a"), Tenant(name="b"), Tenant(name="greedy")
LIGHT = [Tenant(name=f"light-{number}") for number in range(9)]
WIDE = Bounds(requests=10_000, prompt_tokens=10**9, seconds=60.0)


@dataclass
class Job:
    """A request on the modelled worker."""

    work: float
    priority: int
    first_token: "asyncio.Future[None]"
    released: bool = False

    def __lt__(self, _: "Job") -> bool:
        return False


class Worker:
    """Computes one prompt after another, by priority; takes more while little is ahead, as room.py says."""

    def __init__(self, tokens_per_s: float, ahead_s: float = 0.25, bounds: Bounds = WIDE, **options: Any) -> None:
        self.tokens_per_s = tokens_per_s
        self.ahead_s = ahead_s
        self.queue: list[tuple[int, int, Job]] = []
        self.numbers = itertools.count()
        self.work = 0.0
        self.task: asyncio.Task[None] | None = None
        self.undone = 0
        self.gate: Gate[Job] = Gate(has_room=self.has_room, undo=self.undo, bounds=bounds, **options)

    def has_room(self, turn: Turn) -> bool:
        most_s = self.ahead_s * (1 if turn.in_line or turn.heavy else 4)
        return not self.work or self.work / self.tokens_per_s < most_s

    def attempt(self, work: float, claim: Claim, turn: Turn) -> Job | Busy:
        if not self.has_room(turn):
            return Busy(work / self.tokens_per_s)
        job = Job(work, claim.wire_priority(heavy=turn.heavy), asyncio.get_running_loop().create_future())
        heapq.heappush(self.queue, (job.priority, next(self.numbers), job))
        self.work += work
        if self.task is None:
            self.task = asyncio.ensure_future(self.compute())
        return job

    def undo(self, job: Job) -> None:
        job.released = True
        self.undone += 1

    async def compute(self) -> None:
        while self.queue:
            _, _, job = heapq.heappop(self.queue)
            if not job.released:
                await asyncio.sleep(job.work / self.tokens_per_s)
                if not job.first_token.done():  # its client is still there
                    job.first_token.set_result(None)
            self.work -= job.work
            self.gate.changed()
        self.task = None


@dataclass
class Client:
    """Asks, and does as it is told when refused."""

    worker: Worker
    tenant: Tenant
    patience_s: float = 600.0
    retries: int = 0
    ttft_s: list[float] = field(default_factory=list)
    refused: int = 0
    retried: int = 0
    let_in_again: int = 0
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def ask(self, work: float, priority: int = 0) -> None:
        body = b"%d" % next(self.numbers)
        for attempt in range(self.retries + 1):
            began = asyncio.get_running_loop().time()
            arrival = Arrival("id", self.tenant, Patience(self.patience_s, self.patience_s, 15), began, body)
            claim = Claim(arrival, priority, work, began + self.patience_s)
            self.retried += attempt > 0
            try:
                self.worker.gate.check(arrival)
                job = await self.worker.gate.enter(
                    claim, lambda turn, claim=claim: self.worker.attempt(work, claim, turn)
                )
            except RetryableError as error:
                self.refused += 1
                await asyncio.sleep(error.retry_after_s or 0)
                continue
            self.let_in_again += attempt > 0
            assert job is not None
            await job.first_token
            self.ttft_s.append(asyncio.get_running_loop().time() - began)
            return

    async def ask_often(self, per_s: float, work: float, seconds: float, seed: int = 1) -> None:
        """Poisson arrivals; the answers are awaited in the end."""
        random_ = random.Random(seed)
        loop, tasks = asyncio.get_running_loop(), []
        end = loop.time() + seconds
        while loop.time() < end:
            await asyncio.sleep(random_.expovariate(per_s))
            tasks.append(asyncio.ensure_future(self.ask(work)))
        await asyncio.gather(*tasks)


def p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


def test_while_there_is_room_nobody_waits() -> None:
    async def test() -> None:
        waits: list[float] = []
        worker = Worker(1000, on_left=waits.append)
        clients = [Client(worker, ANYONE) for _ in range(10)]
        await asyncio.gather(*(client.ask(50) for client in clients))
        assert max(client.ttft_s[0] for client in clients) == pytest.approx(0.5, abs=1e-3)
        assert waits == []

    run(test())


def test_more_than_there_is_room_for_waits_in_the_gate_and_not_with_the_worker() -> None:
    async def test() -> None:
        worker = Worker(1000)
        tasks = [asyncio.ensure_future(Client(worker, A).ask(100)) for _ in range(100)]
        await asyncio.sleep(0.01)
        assert len(worker.gate) > 80
        await asyncio.sleep(2)
        assert worker.work <= 350
        await asyncio.gather(*tasks)
        assert asyncio.get_running_loop().time() == pytest.approx(10, abs=0.2), "the worker never ran dry"
        assert len(worker.gate) == 0

    run(test())


def test_a_tenant_with_several_requests_has_its_share_beside_many_that_have_one_each() -> None:
    async def test() -> None:
        worker, loop = Worker(1000), asyncio.get_running_loop()

        async def keep_asking(client: Client) -> None:
            while loop.time() < 100:
                await client.ask(100)

        several, *others = [Client(worker, Tenant(name=f"{number}")) for number in range(9)]
        await asyncio.gather(*map(keep_asking, (several, several, several, *others)))
        assert len(several.ttft_s) >= 100, "a ninth of a thousand, nearly"
        assert min(len(other.ttft_s) for other in others) >= 100

    run(test())


def test_a_tenant_of_higher_priority_is_first_however_much_it_has_had() -> None:
    async def test() -> None:
        worker = Worker(1000, ahead_s=0.0)  # has one at a time
        urgent, usual = Client(worker, Tenant(name="urgent", priority=-1)), Client(worker, A)
        await usual.ask(100)
        await asyncio.gather(*(client.ask(100) for client in [urgent] * 50 + [usual] * 3))
        assert min(usual.ttft_s[1:]) > max(urgent.ttft_s)

    run(test())


def test_priority_overtakes_within_a_tenant() -> None:
    async def test() -> None:
        worker = Worker(1000)
        usual, urgent = Client(worker, A), Client(worker, A)
        tasks = [asyncio.ensure_future(usual.ask(100)) for _ in range(50)]
        await asyncio.sleep(0.01)
        await urgent.ask(100, priority=-1)
        await asyncio.gather(*tasks)
        assert urgent.ttft_s[0] < 1.5 < max(usual.ttft_s)

    run(test())


def greedy_beside_nine(times_its_share: float) -> tuple[float, float, int]:
    """Ten tenants on a worker that their shares fill to 70 %. TTFT p95 of the nine, of the greedy one, its refusals."""

    async def test() -> tuple[float, float, int]:
        worker = Worker(10_000)
        per_s, work = 0.7, 1000.0
        nine = [Client(worker, tenant) for tenant in LIGHT]
        greedy = Client(worker, GREEDY)
        await asyncio.gather(
            *(client.ask_often(per_s, work, 300, seed) for seed, client in enumerate(nine)),
            greedy.ask_often(times_its_share * per_s, work, 300, 99),
        )
        return p95([one for client in nine for one in client.ttft_s]), p95(greedy.ttft_s), greedy.refused

    return run(test())


def test_a_tenant_that_sends_100_times_its_share_slows_nobody_but_itself() -> None:
    usual_s, _, refused = greedy_beside_nine(1)
    assert refused == 0
    nine_s, greedy_s, refused = greedy_beside_nine(100)
    print(f"TTFT p95 of nine tenants: {usual_s:.3f} s, beside a greedy one {nine_s:.3f} s; its own {greedy_s:.1f} s")
    assert nine_s < 1.2 * usual_s
    assert 40 < greedy_s < 80, "it fills its own line, up to the minute that a request may wait"
    assert refused > 10_000


@pytest.mark.parametrize("tenant", [ANYONE, A], ids=["anyone", "a tenant"])
def test_who_comes_back_as_told_is_let_in_under_lasting_overload(tenant: Tenant) -> None:
    async def test() -> None:
        worker = Worker(10_000, bounds=WIDE._replace(seconds=10))
        client = Client(worker, tenant, retries=1)
        await client.ask_often(15, 1000, 200)
        print(f"{client.refused} refused, {client.retried} came back, {client.let_in_again} of them were let in")
        assert client.retried > 100
        assert client.let_in_again >= 0.98 * client.retried
        assert max(client.ttft_s) < 25

    run(test())


def test_a_burst_is_told_to_come_back_at_different_times() -> None:
    async def test() -> None:
        worker = Worker(10_000, bounds=WIDE._replace(seconds=5))
        warm = Client(worker, A)
        await asyncio.gather(*(warm.ask(1000) for _ in range(20)))
        client = Client(worker, A, retries=1)
        await asyncio.gather(*(client.ask(1000) for _ in range(400)))
        assert client.retried > 300
        assert client.let_in_again == client.retried
        assert asyncio.get_running_loop().time() == pytest.approx(42, abs=4), "and the worker stays busy"

    run(test())


def test_newcomers_do_not_wait_for_clients_that_never_come_back() -> None:
    async def test() -> None:
        worker = Worker(10_000, bounds=WIDE._replace(seconds=5))
        gone = Client(worker, ANYONE)
        await gone.ask_often(40, 1000, 60)
        assert gone.refused > 1000
        client = Client(worker, ANYONE)
        await asyncio.sleep(6)
        await client.ask_often(5, 1000, 60)
        assert client.refused == 0

    run(test())


def test_who_cannot_be_served_in_time_is_refused_at_once_and_others_are_not() -> None:
    async def test() -> None:
        worker = Worker(1000)
        tasks = [asyncio.ensure_future(Client(worker, A).ask(100)) for _ in range(100)]
        await asyncio.sleep(3)
        hasty, patient, other = Client(worker, A, patience_s=2), Client(worker, A), Client(worker, B, patience_s=2)
        began = asyncio.get_running_loop().time()
        hasty_asks = asyncio.ensure_future(hasty.ask(100))
        await asyncio.sleep(0)
        assert hasty.refused == 1
        assert asyncio.get_running_loop().time() == began
        await asyncio.gather(patient.ask(100), other.ask(100), hasty_asks, *tasks)
        assert (patient.refused, other.refused) == (0, 0)
        assert other.ttft_s[0] < 1 < 5 < patient.ttft_s[0]

    run(test())


def test_the_error_says_whose_fault_it_is() -> None:
    async def errors_of(tenant: Tenant) -> RetryableError:
        worker = Worker(1000, bounds=WIDE._replace(seconds=1))
        others = [asyncio.ensure_future(Client(worker, tenant).ask(100)) for _ in range(100)]
        await asyncio.sleep(3)
        now = asyncio.get_running_loop().time()
        arrival = Arrival("id", tenant, Patience(600, 600, 15), now, b"x")
        with pytest.raises(RetryableError) as caught:
            await worker.gate.enter(Claim(arrival, 0, 100, now + 600), lambda _: Busy())
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return caught.value

    limited, overloaded = run(errors_of(A)), run(errors_of(ANYONE))
    assert isinstance(limited, RateLimited)
    assert "a asks for more than its share" in str(limited)
    assert isinstance(overloaded, Overloaded)
    assert "tokens of work are ahead of this request" in str(overloaded)


def test_the_queue_is_bounded_and_the_longest_line_makes_room() -> None:
    async def test() -> None:
        worker = Worker(1000, bounds=WIDE._replace(requests=50, seconds=1e6))
        greedy = Client(worker, GREEDY)
        tasks = [asyncio.ensure_future(greedy.ask(100)) for _ in range(200)]
        await asyncio.sleep(0.01)
        assert len(worker.gate) == 50
        others = [Client(worker, tenant) for tenant in LIGHT]
        await asyncio.gather(*(client.ask(100) for client in others for _ in range(3)))
        assert sum(client.refused for client in others) == 0
        await asyncio.gather(*tasks)

    run(test())


def test_so_are_the_prompts_that_wait_and_whoever_has_most_tokens_of_them_makes_room() -> None:
    """Also where they are cached, and so are little work."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        gate: Gate[Job] = Gate(has_room=lambda _: False, undo=lambda _: None, bounds=WIDE._replace(prompt_tokens=1000))

        def enter(tenant: Tenant, prompt_tokens: int) -> "asyncio.Future[Job | None]":
            arrival = Arrival("id", tenant, Patience(600, 600, 15), loop.time(), b"")
            work = 1.0 if tenant is GREEDY else prompt_tokens
            claim = Claim(arrival, 0, work, loop.time() + 600, prompt_tokens)
            return asyncio.ensure_future(gate.enter(claim, lambda _: Busy()))

        others = [enter(A, 200), enter(B, 100)]
        greedy = [enter(GREEDY, 350) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert not any(each.done() for each in (*others, *greedy)), "1,000 tokens"
        others.append(enter(A, 1))
        await asyncio.sleep(0.01)
        assert [each.done() for each in (*others, *greedy)] == [False, False, False, False, True]
        with pytest.raises(Overloaded, match="prompts of 1000 tokens wait already") as caught:
            await greedy[1]
        assert caught.value.retry_after_s
        for waiting in (*others, greedy[0]):
            waiting.cancel()
        await asyncio.sleep(0.01)
        waiting = enter(GREEDY, 1000)
        await asyncio.sleep(0.01)
        assert not waiting.done(), "who has gone takes no memory"
        waiting.cancel()

    run(test())


@pytest.mark.parametrize(
    ("bounds", "last", "most"),
    [(WIDE._replace(requests=4), [0, 2], 8), (WIDE._replace(prompt_tokens=400), [0, 2, 3], 4)],
)
def test_who_came_back_as_told_makes_room_last(bounds: Bounds, last: list[int], most: int) -> None:
    """Memory is no estimate; the number of those who wait is."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        gate: Gate[Job] = Gate(has_room=lambda _: False, undo=lambda _: None, bounds=bounds)

        def enter(tenant: Tenant, *, came_back: bool = False) -> "asyncio.Future[Job | None]":
            arrival = Arrival("id", tenant, Patience(600, 600, 15), loop.time(), b"", came_back=came_back)
            claim = Claim(arrival, 0, 100.0, loop.time() + 600, prompt_tokens=100)
            return asyncio.ensure_future(gate.enter(claim, lambda _: Busy()))

        greedy = [enter(GREEDY, came_back=came_back) for came_back in (False, True, False, True)]
        others = []
        for gone in ([2], [0, 2], last):
            others.append(enter(LIGHT[len(others)]))
            await asyncio.sleep(0.01)
            assert [index for index, each in enumerate(greedy) if each.done()] == gone
        await asyncio.gather(*(greedy[index] for index in gone), return_exceptions=True)
        others.extend(enter(A, came_back=True) for _ in range(20))
        await asyncio.sleep(0.01)
        assert len(gate) == most
        for waiting in (*greedy, *others):
            waiting.cancel()
        await asyncio.gather(*greedy, *others, return_exceptions=True)

    run(test())


def test_a_burst_at_a_short_queue_of_unknown_speed_is_let_in_when_it_comes_back() -> None:
    async def test() -> None:
        worker = Worker(2000, bounds=WIDE._replace(requests=10))
        clients = [Client(worker, ANYONE, retries=1) for _ in range(100)]
        for number, client in enumerate(clients):
            client.numbers = itertools.count(1000 * number)
        await asyncio.gather(*(client.ask(100) for client in clients))
        retried = sum(client.retried for client in clients)
        let_in = sum(client.let_in_again for client in clients)
        print(f"{retried} came back, {let_in} of them were let in")
        assert retried > 50
        assert let_in > 0.9 * retried

    run(test())


def test_longer_prompts_make_room_for_many_short_ones() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        gate: Gate[Job] = Gate(has_room=lambda _: False, undo=lambda _: None, bounds=WIDE._replace(prompt_tokens=1000))

        def enter(prompt_tokens: int, priority: int = 0) -> "asyncio.Future[Job | None]":
            arrival = Arrival("id", ANYONE, Patience(600, 600, 15), loop.time(), b"")
            claim = Claim(arrival, priority, 1.0, loop.time() + 600, prompt_tokens)
            return asyncio.ensure_future(gate.enter(claim, lambda _: Busy()))

        short = [enter(10) for _ in range(50)]
        long = enter(501, priority=-1)
        await asyncio.sleep(0.01)
        assert long.done(), "that it would be first is no reason to refuse all others"
        assert not any(each.done() for each in short)
        with pytest.raises(Overloaded):
            await long
        for waiting in short:
            waiting.cancel()

    run(test())


def test_one_that_has_just_left_makes_room_in_a_full_queue() -> None:
    """Its task is cancelled in the same turn of the loop in which another request comes."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        gate: Gate[Job] = Gate(has_room=lambda _: False, undo=lambda _: None, bounds=WIDE._replace(requests=3))

        def enter(tenant: Tenant) -> "asyncio.Future[Job | None]":
            arrival = Arrival("id", tenant, Patience(600, 600, 15), loop.time(), b"")
            return asyncio.ensure_future(gate.enter(Claim(arrival, 0, 100.0, loop.time() + 600), lambda _: Busy()))

        greedy = [enter(GREEDY) for _ in range(3)]
        await asyncio.sleep(0.01)
        other = enter(A)
        greedy[-1].cancel()
        await asyncio.sleep(0.01)
        assert not other.done()
        assert len(gate) == 3
        for waiting in (*greedy, other):
            waiting.cancel()

    run(test())


def test_who_leaves_while_waiting_or_while_being_let_through_leaves_nothing() -> None:
    async def test() -> None:
        worker = Worker(1000)
        tasks = [asyncio.ensure_future(Client(worker, A).ask(100)) for _ in range(60)]
        random_ = random.Random(2)
        for task in random_.sample(tasks, 40):
            await asyncio.sleep(0.01 + random_.random() / 10)
            task.cancel()
            worker.gate.changed()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(5)
        assert (len(worker.gate), worker.gate.work, worker.work) == (0, 0, 0)

    run(test())


def test_a_placement_of_one_that_has_just_left_is_taken_back() -> None:
    """It was let through, and cancelled before it could run."""

    async def test() -> None:
        worker = Worker(1000)
        busy = asyncio.ensure_future(Client(worker, A).ask(1000))
        await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(Client(worker, A).ask(100))
        await asyncio.sleep(0.01)
        assert len(worker.gate) == 1
        worker.work = 0.0
        worker.gate.changed()
        assert len(worker.gate) == 0
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert worker.undone == 1
        await busy

    run(test())


def test_one_that_waits_for_its_best_worker_holds_up_nobody() -> None:
    """Not even those behind it in its own line; and it goes elsewhere when it has waited long enough."""

    async def test() -> None:
        gate: Gate[Job] = Gate(has_room=lambda _: True, undo=lambda _: None, bounds=WIDE._replace(requests=9))
        loop = asyncio.get_running_loop()
        full = True

        def picky(turn: Turn) -> Job | Busy:
            return Busy(could_go=True) if turn.waited_s < 3 else Job(1, 0, loop.create_future())

        def easy(_: Turn) -> Job | Busy:
            return Busy() if full else Job(1, 0, loop.create_future())

        claim = Claim(Arrival("id", ANYONE, Patience(60, 60, 15), 0.0), 0, 1, 60)
        first = asyncio.ensure_future(gate.enter(claim, picky))
        second = asyncio.ensure_future(gate.enter(claim, easy))
        await asyncio.sleep(1)
        assert not first.done()
        assert not second.done()
        full = False
        await second
        assert loop.time() < 1.1
        await first
        assert loop.time() == pytest.approx(3, abs=0.1)

    run(test())


def test_who_goes_behind_is_not_in_the_line_of_others() -> None:
    async def test() -> None:
        gate: Gate[Job] = Gate(has_room=lambda _: True, undo=lambda _: None, bounds=WIDE._replace(requests=99))
        turns: dict[str, Turn] = {}

        def enter(tenant: Tenant) -> "asyncio.Task[Job | None]":
            claim = Claim(Arrival("id", tenant, Patience(60, 60, 15), 0.0), 0, 1, 60)

            def attempt(turn: Turn) -> Busy:
                turns[tenant.name] = turn
                return Busy()

            return asyncio.ensure_future(gate.enter(claim, attempt))

        gate.charge(A, 1000)
        gate.charge(B, 1)
        waiting = [enter(A) for _ in range(9)] + [enter(B)] + [enter(Tenant(name="c", priority=-1))]
        await asyncio.sleep(3)
        found = {name: (turn.priority, turn.waiting, turn.in_line) for name, turn in turns.items()}
        assert found == {"c": (-2, 1, False), B.name: (0, 2, True), A.name: (1, 11, True)}
        for each in waiting:
            each.cancel()

    run(test())


def test_one_that_a_picker_has_put_behind_others_holds_up_nobody() -> None:
    async def test() -> None:
        is_there = False

        def has_room(turn: Turn) -> bool:
            return is_there and turn.priority < 7

        gate: Gate[Job] = Gate(has_room=has_room, undo=lambda _: None, bounds=WIDE._replace(requests=99))

        def enter(tenant: Tenant, picked: int) -> "asyncio.Task[Job | None]":
            arrival = Arrival("id", tenant, Patience(60, 60, 15), 0.0)
            arrival.picked = Picked("10.0.0.1:8000", priority=picked)

            def attempt(turn: Turn) -> Job | Busy:
                return Job(1, turn.priority, asyncio.get_running_loop().create_future()) if has_room(turn) else Busy()

            return asyncio.ensure_future(gate.enter(Claim(arrival, 0, 1, 60), attempt))

        first, second = enter(A, 7), enter(B, 0)
        await asyncio.sleep(1)
        assert len(gate) == 2
        is_there = True
        await asyncio.sleep(1)
        assert (first.done(), second.done()) == (False, True)
        first.cancel()

    run(test())


def test_a_bug_in_one_attempt_is_that_requests_alone() -> None:
    async def test() -> None:
        worker = Worker(1000)
        busy = asyncio.ensure_future(Client(worker, A).ask(2000))
        await asyncio.sleep(0.01)
        now = asyncio.get_running_loop().time()
        results: list[Busy | None] = [Busy()]

        def attempt(_: Turn) -> Busy | None:
            if results:
                return results.pop()
            raise ZeroDivisionError

        claim = Claim(Arrival("id", B, Patience(60, 60, 15), now), 0, 1, now + 60)
        with pytest.raises(ZeroDivisionError):
            await worker.gate.enter(claim, attempt)
        await busy

    run(test())


def test_when_no_worker_is_there_everybody_is_told() -> None:
    async def test() -> None:
        gone = False
        gate: Gate[Job] = Gate(has_room=lambda _: True, undo=lambda _: None, bounds=WIDE._replace(requests=9))
        arrival = Arrival("id", ANYONE, Patience(60, 60, 15), 0.0)
        waiting = asyncio.ensure_future(gate.enter(Claim(arrival, 0, 1, 60), lambda _: None if gone else Busy()))
        await asyncio.sleep(1)
        assert not waiting.done()
        gone = True
        assert await waiting is None

    run(test())


class Streams:
    """Decode workers on which streams run for 10 s each, behind the real rules of room.py and turns.py.

    A prompt takes no time to compute, and memory for as long as its stream runs.
    """

    cost = StepCost(step_s=0.01, prefill_token_s=0.0, prefill_pair_s=0.0, decode_token_s=1e-4, context_token_s=0.0)

    def __init__(self, num_workers: int) -> None:
        self.running: dict[str, list[tuple[int, int]]] = {f"d{number}": [] for number in range(num_workers)}
        self.waits_s: list[float] = []
        self.gate: Gate[Job] = Gate(
            has_room=lambda turn: self.limits(turn).any(self.cluster(), kept=turn.kept),
            undo=lambda _: None,
            bounds=WIDE._replace(seconds=600),
            stopwatch=lambda: 0.0,
        )

    def limits(self, turn: Turn) -> Limits:
        return Room(0.25).of(in_line=turn.in_line, heavy=turn.heavy)

    def cluster(self) -> ClusterSnapshot:
        return ClusterSnapshot(decode=tuple(self.state(url, running) for url, running in self.running.items()))

    def state(self, url: str, running: list[tuple[int, int]]) -> WorkerState:
        streams = sum(num for num, _ in running)
        tokens = sum(tokens for _, tokens in running)
        return WorkerState(
            url,
            streams=streams,
            max_streams=64,
            output_tokens=500 * streams,
            context_tokens=tokens,
            num_tokens=100_000,
            free_tokens=100_000 - tokens,
            cost=self.cost,
        )

    async def ask(self, tenant: Tenant = ANYONE, *, num_answers: int = 1, prompt_tokens: int = 1000) -> float:
        """Returns how long it waited."""
        loop = asyncio.get_running_loop()
        wanted = PlacementRequest(prompt_tokens, output_tokens=1000, num_answers=num_answers)
        began = loop.time()

        def attempt(turn: Turn) -> Job | Busy | None:
            cluster = self.cluster()

            found = take_turn(lambda request: Seconds().choose(request, cluster), wanted, cluster, Room(0.25), turn)
            if not isinstance(found, Placement):
                return found
            stream = num_answers, prompt_tokens
            self.running[found.decode].append(stream)
            loop.call_later(10, self.end, found.decode, stream)
            return Job(1, 0, loop.create_future())

        arrival = Arrival("id", tenant, Patience(600, 600, 15), began)
        await self.gate.enter(Claim(arrival, 0, prompt_tokens + num_answers * 2000, began + 600), attempt)
        return loop.time() - began

    def end(self, url: str, stream: tuple[int, int]) -> None:
        self.running[url].remove(stream)
        self.gate.changed()

    async def flow(self, per_s: float, seconds: float) -> list[float]:
        """Small requests of two tenants that come evenly. How long each waited."""
        tasks = []
        for number in range(int(per_s * seconds)):
            tasks.append(asyncio.ensure_future(self.ask((A, B)[number % 2])))
            await asyncio.sleep(1 / per_s)
        return await asyncio.gather(*tasks)


LARGE = {"many answers": {"num_answers": 64}, "a long prompt": {"prompt_tokens": 95_000}}


@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE.keys())
def test_one_that_fits_nowhere_yet_holds_up_nobody_and_gets_a_worker_that_is_kept_for_it(large: dict[str, int]) -> None:
    """Eight workers with twenty streams each, and as many new ones as end."""

    async def test() -> None:
        streams = Streams(8)
        flow = asyncio.ensure_future(streams.flow(16, 60))
        await asyncio.sleep(20)
        assert min(len(running) for running in streams.running.values()) >= 19
        waited_s = await streams.ask(A, **large)
        assert 1 < waited_s < 12, "until the streams of one worker have ended"
        assert max(await flow) < 0.1

    run(test())


def test_however_many_fit_nowhere_the_small_ones_behind_them_go() -> None:
    async def test() -> None:
        streams = Streams(8)
        flow = asyncio.ensure_future(streams.flow(8, 100))
        await asyncio.sleep(20)
        large = [asyncio.ensure_future(streams.ask(A, num_answers=64)) for _ in range(20)]
        assert max(await flow) < 0.1
        assert sum(task.done() for task in large) >= 5, "one after another"
        await asyncio.gather(*large)

    run(test())


def test_the_only_worker_is_kept_for_one_that_has_waited_for_long() -> None:
    async def test() -> None:
        streams = Streams(1)
        flow = asyncio.ensure_future(streams.flow(2, 60))
        await asyncio.sleep(20)
        assert 15 < await streams.ask(A, num_answers=64) < 22, "ten seconds of patience, and ten to drain"
        waits_s = await flow
        assert max(waits_s[: 2 * 29]) == 0
        assert 10 < max(waits_s) < 22

    run(test())


def test_less_urgent_ones_of_its_own_tenant_are_not_in_a_requests_line() -> None:
    async def test() -> None:
        gate: Gate[Job] = Gate(has_room=lambda _: True, undo=lambda _: None, bounds=WIDE._replace(requests=99))
        turns: dict[int, Turn] = {}

        def enter(priority: int) -> "asyncio.Task[Job | None]":
            claim = Claim(Arrival("id", ANYONE, Patience(60, 60, 15), 0.0), priority, 1, 60)

            def attempt(turn: Turn) -> Busy:
                turns[priority] = turn
                return Busy()

            return asyncio.ensure_future(gate.enter(claim, attempt))

        waiting = [enter(priority) for priority in (1, 0, 0, -1)]
        await asyncio.sleep(3)
        found = {priority: (turn.waiting, turn.in_line) for priority, turn in turns.items()}
        assert found == {-1: (1, False), 0: (3, True), 1: (4, True)}
        for each in waiting:
            each.cancel()

    run(test())
