"""What is expected of a placement, from the moment it is made until the worker tells of it itself."""

import asyncio
from collections.abc import Callable

import openai

from penstock.router.expectations import Expectations
from penstock.router.index.keys import PromptKeys
from penstock.router.metrics import Metrics
from penstock.router.placed import Placed
from penstock.router.placement.books import Books
from penstock.router.placement.journal import Journal
from penstock.router.placement.model import CostModel
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest
from tests.router.cache_model import CacheModel
from tests.router.conftest import StartRouter
from tests.router.fake_worker import FakeWorker
from tests.router.serving import RunningRouter, wait_until
from tests.router.test_prefix_index import index_of

KEYS = PromptKeys("", range(21))


def placed_on(expectations: Expectations, journal: Journal, placement: Placement) -> Placed:
    request = PlacementRequest(21)
    return Placed(
        decode=placement.decode,
        prefill=placement.prefill,
        source=None,
        revision="",
        reservation=Books().book(placement, request, 0.0),
        keys=KEYS,
        cached_tokens=0,
        as_of=0,
        source_as_of=0,
        expected=expectations.placed(placement.computing, KEYS),
        decision=journal.placed("r", request, ClusterSnapshot(), placement),
        placed_at=0.0,
        arrivals={},
    )


def test_a_prompt_can_be_read_where_it_is_computed_and_only_then_where_it_goes() -> None:
    async def test() -> None:
        index, journal = index_of(CacheModel("p"), CacheModel("d")), Journal(CostModel())
        expectations = Expectations(index, journal, Metrics())

        def state() -> tuple[dict[str, int], frozenset[str]]:
            found = index.match(KEYS)
            return found, index.pending(KEYS, found)

        placed = placed_on(expectations, journal, Placement("d", "p"))
        assert state() == ({"p": 20}, {"p"})
        expectations.computed(placed, 0)
        assert state() == ({"p": 20, "d": 20}, {"d"})
        expectations.learned(placed, [[7, 8, 9]])
        assert state() == ({"p": 20, "d": 20}, set())

    asyncio.run(test())


def test_workers_are_told_which_evictions_a_prediction_takes_into_account(
    start_router: StartRouter, start_worker: Callable[[], FakeWorker], connect: Callable[[RunningRouter], openai.OpenAI]
) -> None:
    decode, prefill = start_worker(), start_worker()
    decode.evictions, prefill.evictions = 5, 7
    router = start_router((decode,), (prefill,), policy="least-work")
    index = router.services.placer._index
    wait_until(lambda: index.as_of(decode.url) == 5 and index.as_of(prefill.url) == 7, "what both have to say")
    for text in ("short", "A prompt of more than one block, please" * 3):
        connect(router).completions.create(model="tiny", prompt=text)
    told = [(request.prefill, request.as_of, request.source_as_of) for request in decode.requests]
    assert told == [(None, 5, 0), (prefill.url, 7, 0)]
