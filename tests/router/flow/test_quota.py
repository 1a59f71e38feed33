"""Quotas in virtual time: what is counted, what is given back, and when to come again."""

import asyncio
from collections.abc import Callable

import pytest

from penstock.errors import Overloaded, RateLimited, RequestError
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.patience import Patience
from penstock.router.flow.quota import Headers, LocalBuckets, Quotas, duration
from penstock.router.flow.tenants import ANYONE, Tenant
from tests.router.flow.virtual_time import run

TENANT = Tenant(name="team", requests_per_minute=60, tokens_per_minute=6000)


def arrival(body: bytes = b"", tenant: Tenant = TENANT) -> Arrival:
    return Arrival("id", tenant, Patience(600, 600, 15), 0.0, body)


def new_quotas() -> Quotas:
    clock: Callable[[], float] = asyncio.get_running_loop().time
    return Quotas(LocalBuckets(clock), clock)


async def ask(quotas: Quotas, body: bytes, tokens: int = 10, used: int | None = None) -> dict[str, str]:
    headers: Headers = []
    async with quotas.spending(arrival(body), headers) as spending:
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


@pytest.mark.parametrize(("tokens", "clients"), [(1, 130), (700, 18)])
def test_everybody_who_comes_back_as_told_is_let_in(tokens: int, clients: int) -> None:
    """A burst far beyond the quota, while newcomers keep trying: each refused one is told another time."""

    async def test() -> None:
        quotas = new_quotas()
        waits: list[float] = []

        async def client(name: str) -> bool:
            """Whether it was let in at its first or second try."""
            try:
                await ask(quotas, name.encode(), tokens)
            except RateLimited as error:
                waits.append(error.retry_after_s or 0)
                await asyncio.sleep(waits[-1])
                try:
                    await ask(quotas, name.encode(), tokens)
                except RateLimited:
                    return False
            return True

        async def newcomers() -> None:
            for number in range(clients // 8):
                await asyncio.sleep(0.37)
                try:
                    await ask(quotas, b"newcomer %d" % number, tokens)
                except RateLimited:
                    continue

        trying = asyncio.ensure_future(newcomers())
        let_in = await asyncio.gather(*(client(str(number)) for number in range(clients)))
        await trying
        assert sum(let_in) == clients
        assert len(set(waits)) > clients // 3

    run(test())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0ms"), (0.0201, "21ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s"), (3700, "1h1m40s")]
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
