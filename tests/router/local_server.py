"""What every fake server here is: an aiohttp application on a port of this machine."""

import asyncio
import socket

from aiohttp import web


class LocalServer:
    """Start and stop it on its event loop; what is still being answered at the stop is cancelled."""

    url = ""
    _runner: web.AppRunner | None = None

    def application(self) -> web.Application:
        raise NotImplementedError

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self._runner = web.AppRunner(self.application(), handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        self._socket = socket.create_server((host, port))
        await web.SockSite(self._runner, self._socket).start()
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """The second time it does nothing."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        for _ in range(2):  # asyncio would drop, unclosed, a connection between its acceptance and `connection_made`
            await asyncio.sleep(0)
        await runner.cleanup()
