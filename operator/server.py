"""/metrics, and the probes: alive means that no watch has stalled."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from penstock.operator.metrics import Metrics


@asynccontextmanager
async def serving(host: str, port: int, metrics: Metrics, trouble: Callable[[], str | None]) -> AsyncIterator[None]:
    """Serves while the block lasts. `trouble` says why the process should be restarted, or None."""

    async def health(_: web.Request) -> web.Response:
        said = trouble()
        return web.Response(text=said or "ok", status=500 if said else 200)

    async def ready(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.add_routes([web.get("/healthz", health), web.get("/readyz", ready), web.get("/metrics", show)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()
