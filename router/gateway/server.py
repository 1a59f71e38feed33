"""Serves endpoint pickers over gRPC. The only module that imports grpc."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from penstock.address import bracketed
from penstock.errors import ConfigError
from penstock.listen import bind
from penstock.router.config import RouterConfig
from penstock.router.gateway.exchange import Exchange
from penstock.router.gateway.messages import (
    FULL_DUPLEX_STREAMED,
    NOT_SERVING,
    SERVING,
    HealthCheckRequest,
    HealthCheckResponse,
    ProcessingRequest,
    ProcessingResponse,
    kind_of,
)
from penstock.router.gateway.pick import Pick, pass_on
from penstock.router.http import ClientGone
from penstock.router.openai.endpoint import Prepare
from penstock.router.services import Services

_PROCESSOR, _HEALTH = "envoy.service.ext_proc.v3.ExternalProcessor", "grpc.health.v1.Health"
_READINESS = ("", "readiness", _PROCESSOR)
"""What gateways and probes ask the health of; of "liveness" beside."""
_STOP_S = 0.1
"""For the last words of calls whose requests have ended. (It always takes so long while a gateway is connected.)"""


def picking(services: Services, prepare: Mapping[str, tuple[str, Prepare]]) -> AbstractAsyncContextManager[None]:
    """Listens for as long as the block lasts. Raises ConfigError at once."""
    config = services.config
    credentials = _credentials(config.ext_proc_tls) if config.ext_proc_tls else None
    bind(config.host, config.ext_proc_port or 0).close()
    return _serving(_Picker(services, prepare), config, credentials)


@asynccontextmanager
async def _serving(
    picker: "_Picker", config: RouterConfig, credentials: grpc.ServerCredentials | None
) -> AsyncIterator[None]:
    most_bytes = config.max_body_bytes + 2**20  # a whole body in one message
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", most_bytes)]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=config.max_connections)
    server.add_generic_rpc_handlers(picker.handlers())
    address = f"{bracketed(config.host)}:{config.ext_proc_port}"
    if credentials is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield
    finally:
        await server.stop(_STOP_S)


def _credentials(folder: str) -> grpc.ServerCredentials:
    try:
        key, certificate = ((Path(folder) / name).read_bytes() for name in ("tls.key", "tls.crt"))
    except OSError as error:
        raise ConfigError(f"--ext-proc-tls: {error}") from error
    return grpc.ssl_server_credentials([(key, certificate)])


class _Picker:
    def __init__(self, services: Services, prepare: Mapping[str, tuple[str, Prepare]]) -> None:
        self._services = services
        self._prepare = prepare

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        process = grpc.stream_stream_rpc_method_handler(
            self.process, ProcessingRequest.FromString, ProcessingResponse.SerializeToString
        )
        check = grpc.unary_unary_rpc_method_handler(
            self.check, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
        )
        return (
            grpc.method_handlers_generic_handler(_PROCESSOR, {"Process": process}),
            grpc.method_handlers_generic_handler(_HEALTH, {"Check": check}),
        )

    async def process(self, _: object, context: Any) -> None:
        """One HTTP request. The gateway ends the call when it is done with that, mostly by cancelling it."""

        async def read() -> Any:
            with suppress(grpc.aio.BaseError):
                message = await context.read()
                return None if message is grpc.aio.EOF else message

        async def write(message: Any) -> None:
            try:
                await context.write(message)
            except grpc.aio.BaseError as error:
                raise ClientGone("the gateway has ended the request") from error

        first = await read()
        if first is None:
            return
        if (fault := _fault_of(first)) is not None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, fault)
        exchange = Exchange(first, read, write)
        work = asyncio.create_task(self._serve(exchange))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            exchange.gone.set()
            await work
            raise

    async def check(self, request: Any, context: Any) -> Any:
        """gRPC's health check."""
        if request.service not in (*_READINESS, "liveness"):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {request.service} here")
        serving = request.service == "liveness" or self._services.ready
        return HealthCheckResponse(status=SERVING if serving else NOT_SERVING)

    async def _serve(self, exchange: Exchange) -> None:
        scope = exchange.scope
        found = self._prepare.get(scope["path"]) if scope["method"] == "POST" else None
        if found is None:
            await pass_on(self._services, exchange)
        else:
            name, prepare = found
            await Pick(self._services, name, prepare, exchange)(scope, exchange.receive, exchange.send)


def _fault_of(first: Any) -> str | None:
    """Why this cannot be answered: the gateway is set up in another way than the endpoint picker protocol has it."""
    if kind_of(first) != "request_headers":
        return "the request's headers must come first: set request_header_mode to SEND"
    if first.HasField("protocol_config") and first.protocol_config.request_body_mode != FULL_DUPLEX_STREAMED:
        return "the request's body is needed piece by piece: set request_body_mode to FULL_DUPLEX_STREAMED"
    return None
