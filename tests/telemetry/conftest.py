"""Every test begins and ends outside of any request."""

from collections.abc import Iterator

import pytest

from penstock.telemetry.trace import NO_TRACE, make_current


@pytest.fixture(autouse=True)
def no_request() -> Iterator[None]:
    make_current(NO_TRACE)
    yield
    make_current(NO_TRACE)
