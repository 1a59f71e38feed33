"""What refused clients are told."""

import pytest

from penstock.errors import Overloaded, PenstockError, RateLimited, RequestError
from penstock.router.flow.advice import advice_headers, advised


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            Overloaded("full", retry_after_s=2.5),
            {"retry-after": "3", "retry-after-ms": "2500", "x-should-retry": "true"},
        ),
        (RateLimited("slow", retry_after_s=0.0), {"retry-after": "1", "retry-after-ms": "1", "x-should-retry": "true"}),
        (Overloaded("full"), {"retry-after": "1", "retry-after-ms": "1000", "x-should-retry": "true"}),
        (RequestError("wrong"), {"x-should-retry": "false"}),
        (RequestError("came too slowly", status=408), {"x-should-retry": "true"}),
        (RequestError("conflict", status=409), {"x-should-retry": "false"}),
        (RequestError("never in time", status=503), {"x-should-retry": "false"}),
        (PenstockError("a bug"), {"x-should-retry": "false"}),
        (ValueError("a bug"), {"x-should-retry": "false"}),
    ],
)
def test_headers(error: Exception, expected: dict[str, str]) -> None:
    assert {name.decode(): value.decode() for name, value in advice_headers(error)} == expected


def test_messages_say_when_and_that_the_sdk_does_not_wait_so_long() -> None:
    assert advised(Overloaded("full", retry_after_s=2.5)) == "full; try again in 2.5 s"
    assert advised(Overloaded("full", retry_after_s=120)) == "full; try again in 120 s"
    assert advised(Overloaded("full", retry_after_s=300)).endswith(
        "try again in 300 s, which is longer than OpenAI's SDK waits by itself (120 s)"
    )
