"""Deadlines from headers, as the SDKs really send them."""

import pytest

from penstock.errors import RequestError
from penstock.router.flow.patience import Patience, patience_of


def patience(**headers: str) -> Patience:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return patience_of({"type": "http", "headers": named}, default_s=600, longest_s=3600, silence_s=15)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Patience(600, 600, 15)),
        ({"timeout": "5"}, Patience(5, 5, 15)),
        ({"x_stainless_read_timeout": "600"}, Patience(600, 600, 15)),
        ({"x_stainless_read_timeout": "1200.0"}, Patience(1200, 600, 15)),
        ({"x_stainless_read_timeout": "8"}, Patience(8, 600, 4)),
        ({"x_stainless_read_timeout": "1e9"}, Patience(3600, 600, 15)),
        ({"x_stainless_read_timeout": "0.0001"}, Patience(0.0001, 600, 0.1)),
        ({"timeout": "60", "x_stainless_read_timeout": "8"}, Patience(60, 60, 4)),
        *[
            ({"x_stainless_read_timeout": word}, Patience(600, 600, 15))
            for word in ("NOT_GIVEN", "None", "inf", "nan", "-1", "0", "")
        ],
    ],
)
def test_how_long_a_client_waits(headers: dict[str, str], expected: Patience) -> None:
    assert patience(**headers) == expected


@pytest.mark.parametrize("text", ["0", "-1", "3601", "inf", "nan", "soon", ""])
def test_a_wrong_timeout_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="timeout header must be seconds") as caught:
        patience(timeout=text)
    assert caught.value.field == "timeout"
