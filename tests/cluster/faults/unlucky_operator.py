"""The operator on an API server that has a bad day: a part of its requests meets with each trouble there is.

python -m tests.cluster.faults.unlucky_operator operator FLAGS
"""

import logging
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from penstock.cli import main
from penstock.operator.client import ApiError, ApiUnavailable, Client

log = logging.getLogger(__name__)

TROUBLES = ("429", "409", "500", "no answer", "answer lost", "410")
"""The last is of watches. An answer is lost after the request was done."""
SHARE = 0.06
"""Of the requests, for each trouble."""


def bring_trouble(seed: int) -> None:
    chance = random.Random(seed)
    send, stream = Client._bytes, Client.stream

    async def unlucky(self: Client, method: str, path: str, *rest: Any) -> bytes:
        met = chance.random() / SHARE
        trouble = TROUBLES[int(met)] if met < len(TROUBLES) - 1 and "/leases" not in path else ""
        if trouble:
            log.warning("trouble: %s", trouble)
        if trouble in ("429", "500") or (trouble == "409" and method != "GET"):
            raise ApiError(f"{method} {path}: trouble", status=int(trouble), retry_after_s=0.1)
        if trouble == "no answer":
            raise ApiUnavailable(f"{method} {path}: trouble")
        answer = await send(self, method, path, *rest)
        if trouble == "answer lost":
            raise ApiUnavailable(f"{method} {path}: trouble after it was done")
        return answer

    @asynccontextmanager
    async def expiring(self: Client, path: str, query: dict[str, Any], seconds: float) -> AsyncIterator[Any]:
        async with stream(self, path, query, seconds) as lines:

            async def until_expired() -> AsyncIterator[bytes]:
                async for line in lines:
                    if chance.random() < SHARE:
                        log.warning("trouble: 410")
                        yield b'{"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}'
                        return
                    yield line

            yield until_expired()

    Client._bytes = unlucky  # type: ignore[method-assign]
    Client.stream = expiring  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    bring_trouble(seed=4)
    sys.exit(main(sys.argv[1:]))
