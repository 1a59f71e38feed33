"""Runs the router: one process, one event loop, until SIGTERM or SIGINT."""

import asyncio
import logging
from contextlib import suppress
from types import FrameType

import uvicorn

from penstock.address import bracketed
from penstock.errors import Stopping
from penstock.listen import bind
from penstock.router.app import Direct, build_app
from penstock.router.config import RouterConfig
from penstock.router.connection import ClientConnection, ConnectionLimits
from penstock.router.services import Services
from penstock.telemetry.logs import set_up_logs

log = logging.getLogger(__name__)


def run_router(config: RouterConfig) -> None:
    """Serves until stopped. Raises ConfigError before it listens when the configuration is wrong."""
    set_up_logs(config)
    listener = bind(config.host, config.port)
    make_server(config).run(sockets=[listener])


def make_server(config: RouterConfig) -> "RouterServer":
    """The server, ready to `run()`."""
    logging.getLogger("uvicorn.error").addFilter(_is_not_a_cut)
    app = build_app(config)
    return RouterServer(
        uvicorn.Config(
            Direct(app),
            host=config.host,
            port=config.port,
            loop="uvloop",
            http=ClientConnection.limited(
                ConnectionLimits(config.max_connections, config.max_header_bytes, config.header_timeout_s)
            ),
            ws="none",
            access_log=False,
            log_config=None,
            log_level="warning",
            timeout_keep_alive=75,  # longer than clients keep idle connections, else both close at the same moment
            timeout_graceful_shutdown=1,
        ),
        app.state.services,
    )


class RouterServer(uvicorn.Server):
    """On the first SIGTERM or SIGINT: unready at once, open requests may finish, the rest is cut with an error event.

    A second signal skips the waiting.
    """

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services
        self._stopping: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stopping is None and self.started:
            # A signal handler may run in the middle of anything: leave the rest to the loop.
            self._loop.call_soon_threadsafe(self._begin_to_stop)
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: object = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            self._telling = asyncio.create_task(self._tell(self.servers[0].sockets[0].getsockname()[1]))

    async def _tell(self, port: int) -> None:
        """One line at the start, and one for each change between ready and not."""
        config, cluster = self._services.config, self._services.cluster
        url = f"http://{bracketed(config.host)}:{port}"
        log.info("listening at %s", url)
        if not (config.decode_urls or config.discover):
            log.warning("no decode worker is named, so no request can be served: set --decode or --discover")
        told = None
        while True:
            ready = cluster.has_ready("decode")
            if told is not ready:
                log.info("ready: %s/v1" if ready else "not ready: %s waits for a decode worker", url)
            told = ready
            await cluster.change().wait()

    def _begin_to_stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())

    async def _stop(self) -> None:
        config = self._services.config
        self._services.draining = True
        log.info("stopping: %d requests in progress", len(self._services.lifelines))
        await asyncio.sleep(config.shutdown_delay_s)
        reason = Stopping("the router is stopping")
        self._services.lifelines.refuse(reason)
        with suppress(TimeoutError):
            async with asyncio.timeout(config.shutdown_grace_s):
                await self._services.lifelines.ended()
        self._services.lifelines.cut_all(reason)
        self.should_exit = True


def _is_not_a_cut(record: logging.LogRecord) -> bool:
    """Drops uvicorn's complaint about responses that we cut on purpose."""
    return "without completing response" not in record.getMessage()
