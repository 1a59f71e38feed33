"""A Redis for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.router.shared import buckets
from tests.redis_server import RedisServer, running_redis


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for 50 ms is not taken for a Redis that does not answer."""
    monkeypatch.setattr(buckets, "ANSWER_S", 5.0)
