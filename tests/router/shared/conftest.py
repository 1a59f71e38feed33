"""A Redis for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.local.parts import free_ports
from tests.router.redis_server import RedisServer


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(free_ports(1)[0], tmp_path)
    yield server
    server.kill()
