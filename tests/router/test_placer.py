"""What the placer books, and how long it waits for workers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from penstock.errors import DeadlineExceeded, Overloaded, RequestError, RetryableError, Stopping, WorkerLost
from penstock.hop import Readiness
from penstock.protocol import GenerateRequest, Sample, SamplingParams, StepTiming
from penstock.router.cluster import Cluster, Member, Worker
from penstock.router.flow.admission import Bounds
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.patience import Patience
from penstock.router.flow.room import Room
from penstock.router.flow.tenants import ANYONE, Tenant
from penstock.router.index.prefix_index import PrefixIndex
from penstock.router.metrics import Metrics
from penstock.router.placed import Placed
from penstock.router.placement.books import About
from penstock.router.placement.journal import Journal
from penstock.router.placement.least_work import LeastWork
from penstock.router.placement.model import CostModel
from penstock.router.placer import Placer
from penstock.router.policy import Picked
from penstock.router.trial import Trial
from tests.router.flow.virtual_time import run


def new_placer(session: aiohttp.ClientSession, cluster: Cluster, index: PrefixIndex) -> Placer:
    return Placer(
        session,
        cluster,
        LeastWork(),
        index,
        Metrics(),
        Journal(CostModel()),
        max_attempts=9,
        wait_s=1.0,
        stream_wait_s=20.0,
        room=Room(0.25),
        bounds=Bounds(9, 1_000_000, 9.0),
    )


def just_arrived(tenant: Tenant = ANYONE) -> Arrival:
    return Arrival("r", tenant, Patience(1, 1, 1), asyncio.get_running_loop().time())


REQUEST = GenerateRequest(
    request_id="r", prompt=(1,) * 20, sampling=SamplingParams(max_tokens=20), samples=(Sample(0, 1),)
)


def test_what_resumes_is_placed_by_all_tokens_that_it_has_and_reads_only_from_its_own_revision() -> None:
    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            cluster, index = Cluster(session, 1.0), PrefixIndex(9)
            for name, revision in (("d0", "1"), ("d1", "1"), ("d2", "2")):
                cluster.add(Member(f"http://{name}", "decode", revision))
            placer = new_placer(session, cluster, index)
            request = GenerateRequest(
                request_id="r", prompt=(1,) * 20, sampling=SamplingParams(max_tokens=20), samples=(Sample(0, 1),)
            )
            trial, arrival = Trial(), just_arrived()
            sources = []
            for ready in (0, 1, 2, 1):
                for number, worker in enumerate(cluster.workers):
                    worker.ready = number == ready
                placed = await placer.place(request, 1, trial, arrival.began + 1, arrival, output=(2,) * 15)
                placed.is_computed = True
                assert cluster.snapshot().decode[0].prefill_tokens == 35
                placer.ended(placed)
                sources.append(placed.source)
                error = Stopping("it leaves") if ready != 2 else WorkerLost("it is gone")
                placer.failed(placed, trial, error, num_output=15)
                trial.excluded.clear()
            assert sources == [None, "http://d0", None, None], "not from another revision, not from the dead"
            await cluster.close()

    asyncio.run(test())


def test_only_the_answers_that_are_placed_are_booked() -> None:
    """An answer that goes on alone is one of the request's three."""

    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            cluster = Cluster(session, 1.0)
            cluster.add(Member("http://d", "decode"))
            cluster.workers[0].ready = True
            placer = new_placer(session, cluster, PrefixIndex(9))
            request = GenerateRequest(
                request_id="r",
                prompt=(1, 2),
                sampling=SamplingParams(max_tokens=20),
                samples=tuple(Sample(index, 1) for index in range(3)),
            )
            for num_answers in (3, 1):
                arrival = just_arrived()
                placed = await placer.place(request, num_answers, Trial(), arrival.began + 1, arrival)
                assert cluster.snapshot().decode[0].output_tokens == 20 * num_answers
                placed.reservation.release()
            await cluster.close()

    asyncio.run(test())


class ToldCluster(Cluster):
    """Nobody is asked whether it is ready: the test tells."""

    async def _watch(self, worker: Worker) -> None:
        """Never."""

    def tell(self, *, ready: bool) -> None:
        for worker in self.workers:
            self._set_ready(worker, "" if ready else "the test says so")


@asynccontextmanager
async def one_decode_worker(max_streams: int) -> AsyncIterator[tuple[Placer, ToldCluster]]:
    async with aiohttp.ClientSession() as session:
        cluster = ToldCluster(session, 1.0)
        cluster.add(Member("http://d", "decode"))
        cluster.books.describe("http://d", About(max_streams=max_streams))
        cluster.tell(ready=True)
        yield new_placer(session, cluster, PrefixIndex(9)), cluster
        await cluster.close()


async def place_one(
    placer: Placer, tenant: Tenant = ANYONE, prompt: tuple[int, ...] = (1, 2), trial: Trial | None = None
) -> Placed:
    """Its client waits for ten minutes."""
    sampling, samples = SamplingParams(max_tokens=20), (Sample(0, 1),)
    request = GenerateRequest(request_id="r", prompt=prompt, sampling=sampling, samples=samples)
    arrival = just_arrived(tenant)
    return await placer.place(request, 1, trial or Trial(), arrival.began + 600, arrival)


def test_when_the_last_worker_goes_those_who_wait_are_told_as_soon_as_those_who_come() -> None:
    async def test() -> None:
        async with one_decode_worker(max_streams=1) as (placer, cluster):
            await place_one(placer)
            waiting = asyncio.ensure_future(place_one(placer))
            await asyncio.sleep(20)
            assert not waiting.done()
            cluster.tell(ready=False)
            with pytest.raises(Overloaded, match=r"^no decode worker became ready within 1 s$"):
                await waiting
            assert asyncio.get_running_loop().time() == pytest.approx(21, abs=0.1)

    run(test())


def test_who_has_waited_for_its_turn_still_waits_for_a_worker_that_is_back_in_a_moment() -> None:
    async def test() -> None:
        async with one_decode_worker(max_streams=1) as (placer, cluster):
            first = await place_one(placer)
            waiting = asyncio.ensure_future(place_one(placer))
            await asyncio.sleep(20)
            cluster.tell(ready=False)
            placer.ended(first)
            await asyncio.sleep(0.5)
            cluster.tell(ready=True)
            assert (await waiting).decode == "http://d"

    run(test())


def test_a_worker_that_is_back_before_those_who_wait_have_looked_is_seen() -> None:
    async def test() -> None:
        async with one_decode_worker(max_streams=1) as (placer, cluster):
            first = await place_one(placer)
            waiting = asyncio.ensure_future(place_one(placer))
            await asyncio.sleep(20)
            cluster.tell(ready=False)
            placer.ended(first)
            cluster.tell(ready=True)
            assert (await waiting).decode == "http://d"
            assert asyncio.get_running_loop().time() == pytest.approx(20, abs=0.1)

    run(test())


def test_an_answer_that_has_begun_waits_longer_for_a_worker() -> None:
    async def test() -> None:
        async with one_decode_worker(max_streams=1) as (placer, cluster):
            loop, began = asyncio.get_running_loop(), Trial(has_begun=True)
            cluster.tell(ready=False)
            loop.call_later(19.0, lambda: cluster.tell(ready=True))
            assert (await place_one(placer, trial=began)).decode == "http://d"
            assert loop.time() == pytest.approx(19, abs=0.1)
            cluster.tell(ready=False)
            began.last_error = WorkerLost("it is gone")
            with pytest.raises(Overloaded, match=r"with this answer's weights .* 20 s; before that, it is gone"):
                await place_one(placer, trial=began)
            assert loop.time() == pytest.approx(39, abs=0.1)

    run(test())


@pytest.mark.parametrize("is_new_member", [False, True])
def test_what_failed_in_a_workers_last_life_is_not_held_against_this_one(is_new_member: bool) -> None:
    """A pull that hangs, or a silence, may be told of when the worker has long been started again."""

    async def test() -> None:
        async with one_decode_worker(max_streams=9) as (placer, cluster):
            early, trial = Trial(), Trial()
            before = await place_one(placer, trial=early)
            if is_new_member:
                cluster.remove("http://d")
                cluster.add(Member("http://d", "decode"))
            cluster.tell(ready=False)
            cluster.tell(ready=True)
            after = await place_one(placer, trial=trial)
            placer.failed(before, early, WorkerLost("the old one is gone"), num_output=0)
            assert cluster.has_ready("decode")
            assert (await place_one(placer, trial=early)).decode == "http://d"
            placer.failed(after, trial, WorkerLost("this one is gone"), num_output=0)
            assert not cluster.has_ready("decode")

    run(test())


@pytest.mark.parametrize("has_begun", [False, True])
def test_what_every_worker_fails_is_told_at_once_unless_one_may_come_in_its_place(has_begun: bool) -> None:
    async def test() -> None:
        async with one_decode_worker(max_streams=9) as (placer, cluster):
            loop, num_output = asyncio.get_running_loop(), int(has_begun)
            for error in (RetryableError("its logits are not finite"), Stopping("it leaves"), WorkerLost("it is gone")):
                began, trial = loop.time(), Trial()
                placed = await place_one(placer, trial=trial)
                placer.failed(placed, trial, error, num_output=num_output)
                placer.ended(placed)
                with pytest.raises(RetryableError) as caught:
                    await place_one(placer, trial=trial)
                if type(error) is RetryableError:
                    assert caught.value is error
                    assert loop.time() == began
                else:
                    assert str(error) in str(caught.value)
                    assert loop.time() - began == pytest.approx(20 if has_begun else 1, abs=0.1)
                cluster.tell(ready=True)

    run(test())


def test_prompts_that_wait_for_a_worker_are_bounded_together() -> None:
    async def test() -> None:
        async with one_decode_worker(max_streams=9) as (placer, cluster):
            cluster.tell(ready=False)
            half = (1,) * 500_000
            waiting = [asyncio.ensure_future(place_one(placer, prompt=half)) for _ in range(2)]
            begun = asyncio.ensure_future(place_one(placer, prompt=half, trial=Trial(has_begun=True)))
            under_way = asyncio.ensure_future(place_one(placer, prompt=half, trial=Trial(attempts=1)))
            await asyncio.sleep(0.1)
            with pytest.raises(Overloaded, match="prompts of 1000000 tokens wait for one already"):
                await place_one(placer)
            assert not any(each.done() for each in (*waiting, begun, under_way)), "they have their place"
            waiting.pop().cancel()
            await asyncio.sleep(0.1)
            waiting.append(asyncio.ensure_future(place_one(placer)))
            await asyncio.sleep(0.1)
            cluster.tell(ready=True)
            for each in asyncio.as_completed((*waiting, begun, under_way)):
                placer.ended(await each)

    run(test())


def test_an_answer_goes_only_where_there_is_room_for_its_longest() -> None:
    """It was let in while every worker had such room."""

    async def test() -> None:
        async with one_decode_worker(max_streams=9) as (placer, cluster):
            cluster.workers[0].said = Readiness(True, max_context_tokens=21)
            with pytest.raises(Overloaded, match="no decode worker"):
                await place_one(placer)
            cluster.workers[0].said = Readiness(True, max_context_tokens=22)
            assert (await place_one(placer)).decode == "http://d"

    run(test())


def test_workers_that_come_and_go_prolong_no_wait() -> None:
    """Only decode workers help, but every worker's change is a reason to look."""

    async def test() -> None:
        async with one_decode_worker(max_streams=1) as (placer, cluster):
            cluster.tell(ready=False)
            loop, ended_s = asyncio.get_running_loop(), list[float]()
            waiting = asyncio.ensure_future(place_one(placer))
            waiting.add_done_callback(lambda _: ended_s.append(loop.time()))
            cluster.add(Member("http://p", "prefill"))
            for number in range(40):
                cluster._set_ready(cluster.workers[1], "" if number % 2 == 0 else "told so")
                await asyncio.sleep(0.1)
            with pytest.raises(Overloaded):
                await waiting
            assert ended_s == [pytest.approx(1.0, abs=0.1)]

    run(test())


def test_a_tenant_does_not_pay_for_a_prompt_that_was_not_computed() -> None:
    """It left before that, or the worker refused."""
    leaving, other, third = (Tenant(name=name) for name in ("leaving", "other", "third"))

    async def test() -> None:
        async with one_decode_worker(max_streams=1) as (placer, _):
            placer.ended(await place_one(placer, leaving, prompt=(1,) * 1000))
            served = await place_one(placer, other)
            placer.computed(served, None)
            served.num_output = 20
            placer.ended(served)
            running = await place_one(placer, third)
            waiting = [asyncio.ensure_future(place_one(placer, tenant)) for tenant in (other, other, leaving)]
            await asyncio.sleep(0.01)
            order = []
            for _ in range(3):
                placer.ended(running)
                [task], _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                waiting.remove(task)
                running = task.result()
                order.append(running.tenant)
            assert order == [leaving, other, other], "at a tie, who wants least is first"

    run(test())


def test_an_attempt_that_fails_is_paid_for_as_far_as_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with one_decode_worker(max_streams=9) as (placer, _):
            paid: list[float] = []
            monkeypatch.setattr(placer.gate, "charge", lambda _, work: paid.append(work))
            monkeypatch.setattr(placer.gate, "done", lambda _, more_work: paid.append(more_work))
            request = GenerateRequest(
                request_id="r", prompt=(1,) * 100, sampling=SamplingParams(max_tokens=20), samples=(Sample(0, 1),)
            )
            trial, arrival = Trial(), just_arrived()
            for had, more, total in ((0, 0, 0), (0, 5, 100 + 2 * 5), (5, 3, 100 + 2 * 8)):
                placed = await placer.place(request, 1, trial, arrival.began + 600, arrival, output=(2,) * had)
                if more:
                    placer.computed(placed, None)
                placed.num_output = more
                placer.ended(placed)
                assert sum(paid) == total
                placer.failed(placed, trial, Stopping("it leaves"), num_output=had + more)
                trial.excluded.clear()

    run(test())


def test_a_prompt_is_looked_up_when_it_comes_and_when_its_turn_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at every look at the queue while no worker has room."""

    async def test() -> None:
        async with one_decode_worker(max_streams=1) as (placer, _):
            looked_up: list[float] = []
            match, loop = placer._index.match, asyncio.get_running_loop()
            monkeypatch.setattr(placer._index, "match", lambda keys: looked_up.append(loop.time()) or match(keys))
            first = await place_one(placer)
            assert looked_up == [0]
            waiting = asyncio.ensure_future(place_one(placer))
            await asyncio.sleep(5)
            placer.ended(first)
            await waiting
            assert looked_up == pytest.approx([0, 0, 5])

    run(test())


def test_a_deadline_that_passes_is_no_workers_failure() -> None:
    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            cluster = Cluster(session, 1.0)
            cluster.add(Member("http://d", "decode"))
            cluster.workers[0].ready = True
            placer = new_placer(session, cluster, PrefixIndex(9))
            request = GenerateRequest(
                request_id="r", prompt=(1, 2), sampling=SamplingParams(max_tokens=20), samples=(Sample(0, 1),)
            )
            trial, arrival = Trial(), just_arrived()
            placed = await placer.place(request, 1, trial, arrival.began + 1, arrival)
            with pytest.raises(DeadlineExceeded):
                placer.failed(placed, trial, DeadlineExceeded("too late"), num_output=0)
            assert not trial.excluded
            await cluster.close()

    asyncio.run(test())


def test_when_all_are_predicted_to_be_too_late_one_is_tried_now_and_then() -> None:
    """Workers were slow, and are no longer: nothing but a prompt can show it."""

    async def test() -> None:
        async with one_decode_worker(max_streams=9) as (placer, cluster):
            model, loop = cluster.books.model, asyncio.get_running_loop()

            def step(seconds: float) -> None:
                model.stepped("http://d", "", 64 * [StepTiming(20, 0, 0, seconds, 200)])

            async def ask(longest_s: float = 2.0) -> bool:
                try:
                    placed = await placer.place(REQUEST, 1, Trial(), loop.time() + longest_s, just_arrived())
                except RequestError:
                    return False
                placer.ended(placed)
                return True

            step(60.0)
            placed = await placer.place(REQUEST, 1, Trial(), loop.time() + 600, just_arrived())
            placer.computed(placed, None)
            placer.ended(placed)
            went = [loop.time() for _ in range(1000) if await asyncio.sleep(0.1, True) and await ask()]
            assert went == pytest.approx([40, 80], abs=0.2), "a twentieth of the time"
            await asyncio.sleep(40)
            assert not await ask(9.0), "one that would be computed for longer in vain comes less often"
            assert await ask()
            for _ in range(20):
                step(0.01)
            assert await ask()
            assert await ask()

    run(test())


def test_such_prompts_are_tried_one_after_another_while_they_are_in_time() -> None:
    async def test() -> None:
        async with one_decode_worker(max_streams=9) as (placer, cluster):
            cluster.books.model.stepped("http://d", "", 64 * [StepTiming(20, 0, 0, 60.0, 200)])
            loop = asyncio.get_running_loop()

            async def go(at: float) -> Placed:
                await asyncio.sleep(at - loop.time())
                return await placer.place(REQUEST, 1, Trial(), at + 2, just_arrived())

            first = await go(0)
            with pytest.raises(RequestError):
                await go(1)
            placer.computed(first, None)
            second = await go(1)
            placer.ended(first)
            with pytest.raises(RequestError):
                await go(100)
            placer.ended(second)
            with pytest.raises(RequestError):
                await go(139.9)
            await go(140)

    run(test())


def test_one_that_shall_be_tried_and_finds_workers_full_waits_for_them() -> None:
    async def test() -> None:
        async with one_decode_worker(max_streams=1) as (placer, cluster):
            first = await place_one(placer)
            cluster.books.model.stepped("http://d", "", 64 * [StepTiming(20, 0, 0, 60.0, 200)])
            loop = asyncio.get_running_loop()
            waiting = asyncio.ensure_future(placer.place(REQUEST, 1, Trial(), loop.time() + 2, just_arrived()))
            await asyncio.sleep(1)
            assert not waiting.done()
            placer.ended(first)
            assert (await waiting).is_test

    run(test())


@pytest.mark.parametrize(
    ("first", "had", "priorities"),
    [(Tenant(name="light"), 1e6, (1, 0)), (Tenant(name="urgent", priority=-1), 0.0, (0, -2))],
    ids=["light", "urgent"],
)
def test_a_request_finds_nothing_of_what_goes_behind_it(first: Tenant, had: float, priorities: tuple[int, int]) -> None:
    async def test() -> None:
        async with one_decode_worker(max_streams=99) as (placer, _):
            other = Tenant(name="other")
            placer.gate.charge(first, 1)
            placer.gate.charge(other, had)
            behind = await place_one(placer, other, prompt=(1,) * 20_000)
            waiting = [asyncio.ensure_future(place_one(placer, other, prompt=(2,) * 20_000)) for _ in range(3)]
            await asyncio.sleep(1)
            assert len(placer.gate) == 3
            trial = Trial()
            for waiting_before in (1, 0):  # the second time it is under way, and does not wait
                async with asyncio.timeout(0):
                    placed = await place_one(placer, first, trial=trial)
                assert (behind.priority, placed.priority) == priorities
                seen = placed.decision.cluster
                assert (seen.waiting, seen.decode[0].prefill_tokens) == (waiting_before, 0)
                assert seen.decode[0].streams_behind == 1
                placer.ended(placed)
                placer.failed(placed, trial, Stopping("it leaves"), num_output=0)
                trial.excluded.clear()
            for each in waiting:
                each.cancel()

    run(test())


def test_who_a_picker_has_put_behind_others_stays_there_also_when_it_is_placed_again() -> None:
    async def test() -> None:
        async with one_decode_worker(max_streams=9) as (placer, _):
            request = GenerateRequest(
                request_id="r", prompt=(1, 2), sampling=SamplingParams(max_tokens=20), samples=(Sample(0, 1),)
            )
            for said, expected in ((7, 7), (-7, 0)):  # a picker cannot put it before others
                trial, arrival = Trial(), just_arrived()
                arrival.picked = Picked("10.0.0.1:8000", priority=said)
                for _ in range(2):
                    placed = await placer.place(request, 1, trial, arrival.began + 1, arrival)
                    assert placed.priority == expected
                    placer.ended(placed)
                    placer.failed(placed, trial, Stopping("it leaves"), num_output=0)
                    trial.excluded.clear()

    run(test())
