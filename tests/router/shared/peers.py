"""Routers that meet in Redis, in one event loop."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from penstock.router.shared.link import Link


class Linked(Protocol):
    link: Link


P = TypeVar("P", bound=Linked)


def run_peers(make: Callable[..., P], test: Callable[[Callable[..., P]], Awaitable[None]]) -> None:
    """`test` gets a function that makes peers as `make` does; they are closed in the end."""

    async def whole() -> None:
        peers: list[P] = []

        def new_peer(*arguments: Any) -> P:
            peers.append(make(*arguments))
            return peers[-1]

        try:
            await test(new_peer)
        finally:
            for peer in peers:
                await peer.link.close()

    asyncio.run(whole())
