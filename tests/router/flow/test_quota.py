"""Quotas in virtual time: what is counted, what is given back, and when to come again."""

import asyncio
import math
from collections.abc import Callable

import pytest

from penstock.errors import Overloaded, RateLimited, RequestError
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.patience import Patience
from penstock.router.flow.promises import EARLY_S
from penstock.router.flow.quota import Headers, Level, LocalBuckets, Quotas, duration
from penstock.router.flow.tenants import ANYONE, Tenant
from tests.router.flow.virtual_time import run

TENANT = Tenant(name="team", requests_per_minute=60, tokens_per_minute=6000)


class FarBuckets(LocalBuckets):
    """As in Redis: others ask while a question is on its way, and while its answer is."""

    async def take(self, name: str, per_minute: int, amount: float, least: float = -math.inf) -> Level:
        await asyncio.sleep(0)
        level = await super().take(name, per_minute, amount, least)
        await asyncio.sleep(0)
        return level


def arrival(body: bytes = b"", tenant: Tenant = TENANT, *, is_first_try: bool = False) -> Arrival:
    return Arrival("id", tenant, Patience(600, 600, 15), 0.0, body, is_first_try=is_first_try)


def new_quotas(buckets: type[LocalBuckets] = LocalBuckets) -> Quotas:
    clock: Callable[[], float] = asyncio.get_running_loop().time
    return Quotas(buckets(clock), clock)


async def ask(
    quotas: Quotas, body: bytes, tokens: int = 10, used: int | None = None, *, is_first_try: bool = False
) -> dict[str, str]:
    headers: Headers = []
    async with quotas.spending(arrival(body, is_first_try=is_first_try), headers) as spending:
        await spending.expect(tokens)
        spending.used = tokens if used is None else used
    return {name.decode(): value.decode() for name, value in headers}


def test_headers_are_openais() -> None:
    async def test() -> None:
        quotas = new_quotas()
        await ask(quotas, b"1", 1000)
        assert await ask(quotas, b"2", 2000) == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "58",
            "x-ratelimit-reset-requests": "2s",
            "x-ratelimit-limit-tokens": "6000",
            "x-ratelimit-remaining-tokens": "3000",
            "x-ratelimit-reset-tokens": "30s",
        }

    run(test())


def test_without_quotas_nothing_is_counted_or_said() -> None:
    async def test() -> None:
        quotas, headers = new_quotas(), []
        for _ in range(1000):
            async with quotas.spending(arrival(tenant=ANYONE), headers) as spending:
                await spending.expect(10**9)
        assert headers == []

    run(test())


def test_more_requests_than_allowed_are_refused_with_the_time_to_come_back() -> None:
    async def test() -> None:
        quotas = new_quotas()
        for number in range(60):
            await ask(quotas, b"%d" % number, 1)
        with pytest.raises(RateLimited, match="team may ask for 60 requests per minute; 0 are left") as caught:
            await ask(quotas, b"more", 1)
        assert caught.value.retry_after_s == pytest.approx(1, abs=0.01)
        await asyncio.sleep(caught.value.retry_after_s or 0)
        await ask(quotas, b"more", 1)

    run(test())


def test_tokens_are_set_right_when_the_answer_is_there() -> None:
    async def test() -> None:
        quotas = new_quotas()
        await ask(quotas, b"1", 5000, used=500)
        assert (await ask(quotas, b"2", 5000))["x-ratelimit-remaining-tokens"] == "500"
        with pytest.raises(RateLimited, match="500 are left of them, and this takes 1000"):
            await ask(quotas, b"3", 1000)

    run(test())


def test_an_answer_longer_than_expected_is_paid_for_later() -> None:
    async def test() -> None:
        quotas = new_quotas()
        await ask(quotas, b"1", 5000, used=9000)
        with pytest.raises(RateLimited) as caught:
            await ask(quotas, b"2", 10)
        assert caught.value.retry_after_s == pytest.approx(30.1, abs=0.01)

    run(test())


def test_a_request_that_never_got_to_a_worker_costs_nothing() -> None:
    async def test() -> None:
        quotas = new_quotas()

        async def refused() -> None:
            async with quotas.spending(arrival(), []) as spending:
                await spending.expect(6000)
                raise Overloaded("full")

        with pytest.raises(Overloaded):
            await refused()
        assert (await ask(quotas, b"2", 1))["x-ratelimit-remaining-tokens"] == "5999"
        assert (await ask(quotas, b"2", 1))["x-ratelimit-remaining-requests"] == "58"

    run(test())


@pytest.mark.parametrize(("used", "requests", "tokens"), [(None, "59", "5999"), (40, "58", "5959")])
def test_a_request_whose_client_leaves_costs_what_workers_did_for_it(
    used: int | None, requests: str, tokens: str
) -> None:
    """Its deadline ends it in the same way."""

    async def test() -> None:
        quotas = new_quotas()

        async def cancelled() -> None:
            async with quotas.spending(arrival(), []) as spending:
                await spending.expect(6000)
                try:
                    await asyncio.Event().wait()
                finally:
                    spending.used = used

        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        left = await ask(quotas, b"2", 1)
        assert (left["x-ratelimit-remaining-requests"], left["x-ratelimit-remaining-tokens"]) == (requests, tokens)

    run(test())


def test_what_was_refused_for_its_tokens_is_no_request() -> None:
    async def test() -> None:
        quotas = new_quotas()
        await ask(quotas, b"1", 6000)
        with pytest.raises(RateLimited):
            await ask(quotas, b"2", 600)
        await asyncio.sleep(10)
        assert (await ask(quotas, b"2", 600))["x-ratelimit-remaining-requests"] == "59"

    run(test())


def test_more_tokens_than_a_minutes_quota_can_never_be_had() -> None:
    async def test() -> None:
        with pytest.raises(RequestError, match="6001 tokens, but the quota of team is 6000") as caught:
            await ask(new_quotas(), b"", 6001)
        assert caught.value.status == 429

    run(test())


async def told(quotas: Quotas, body: bytes, tokens: int = 1, *, is_first_try: bool = False) -> float:
    """Seconds after which a request is to come back; 0 where it was let in."""
    try:
        await ask(quotas, body, tokens, is_first_try=is_first_try)
    except RateLimited as error:
        return error.retry_after_s or 0.0
    return 0.0


@pytest.mark.parametrize("are_equal", [False, True], ids=["different", "equal"])
@pytest.mark.parametrize("buckets", [LocalBuckets, FarBuckets])
@pytest.mark.parametrize(("tokens", "clients"), [(1, 130), (700, 18)])
def test_everybody_who_comes_back_as_told_is_let_in(
    tokens: int, clients: int, buckets: type[LocalBuckets], are_equal: bool
) -> None:
    """A burst far beyond the quota, while newcomers keep trying: each refused one is told another time."""

    async def test() -> None:
        quotas = new_quotas(buckets)
        waits: list[float] = []

        async def client(number: int) -> bool:
            """Whether it was let in at its first or second try."""
            body = b"" if are_equal else b"%d" % number
            wait_s = await told(quotas, body, tokens, is_first_try=True)
            waits.append(wait_s)
            await asyncio.sleep(wait_s)
            return wait_s == 0 or await told(quotas, body, tokens) == 0

        async def newcomers() -> None:
            for number in range(clients // 8):
                await asyncio.sleep(0.37)
                await told(quotas, b"newcomer %d" % number, tokens)

        trying = asyncio.ensure_future(newcomers())
        let_in = await asyncio.gather(*(client(number) for number in range(clients)))
        await trying
        assert sum(let_in) == clients
        assert len(set(waits)) > clients // 3

    run(test())


def test_a_newcomer_takes_nothing_that_is_promised_while_the_buckets_are_asked() -> None:
    async def test() -> None:
        quotas = new_quotas(FarBuckets)
        await ask(quotas, b"before", 5500)
        large, small = await asyncio.gather(told(quotas, b"large", 1000), told(quotas, b"small", 100))
        assert large == pytest.approx(5, abs=0.01)
        assert small == pytest.approx(6, abs=0.01), "there was enough for it, but not for both"
        await asyncio.sleep(large)
        assert await told(quotas, b"large", 1000) == 0
        await asyncio.sleep(small - large)
        assert await told(quotas, b"small", 100) == 0

    run(test())


def test_those_who_come_as_told_in_vain_are_not_all_told_the_same_time() -> None:
    """An answer was longer than expected: nobody finds what was promised."""

    async def test() -> None:
        quotas = new_quotas()
        await ask(quotas, b"before", 6000)
        waits = [await told(quotas, b"%d" % number, 100) for number in range(5)]
        await quotas.give_back(arrival(), "tokens", -1000)

        async def come_back(number: int) -> float:
            await asyncio.sleep(waits[number])
            in_vain_s = await told(quotas, b"%d" % number, 100)
            assert in_vain_s > 1
            await asyncio.sleep(in_vain_s)
            return await told(quotas, b"%d" % number, 100)

        assert await asyncio.gather(*(come_back(number) for number in range(5))) == [0] * 5

    run(test())


def test_who_comes_back_a_little_early_is_let_in() -> None:
    async def test() -> None:
        quotas = new_quotas()
        await asyncio.gather(*(ask(quotas, b"%d" % number) for number in range(60)))
        await asyncio.sleep(await told(quotas, b"more") - 0.9 * EARLY_S)
        assert await told(quotas, b"more") == 0

    run(test())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.0201, "21ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.97, "59.97s"),
        (59.9999, "1m0s"),
        (119.97, "1m59.97s"),
        (360, "6m0s"),
        (3700, "1h1m40s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
