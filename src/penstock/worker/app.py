"""The HTTP application of a worker: routes common to both roles, joined with those of prefill/ and decode/."""

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from penstock.decode.routes import decode_routes
from penstock.errors import Overloaded, RequestError
from penstock.fingerprint import layout_fingerprint
from penstock.hop import Readiness
from penstock.prefill.routes import prefill_routes
from penstock.worker.front import Front
from penstock.worker.http import FrameResponse, Write, json_response, refusal


def build_app(front: Front) -> FastAPI:
    """Every worker serves all routes; its role only chooses defaults."""
    app = FastAPI(title=f"Penstock {front.config.role} worker", openapi_url=None)
    app.include_router(_common_routes(front))
    app.include_router(prefill_routes(front))
    app.include_router(decode_routes(front))
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(Overloaded, _refuse)
    app.add_exception_handler(ClientDisconnect, _nobody_listens)
    return app


def _common_routes(front: Front) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> Response:
        """200 while the engine process lives and is not stuck in a step."""
        trouble = front.bridge.trouble()
        return json_response({"healthy": True}) if trouble is None else refusal(Overloaded(trouble))

    @routes.get("/ready")
    async def ready() -> Response:
        """200 while the worker takes new requests, with what a request must respect here."""
        if (reason := front.unready()) is not None:
            return refusal(Overloaded(reason))
        limits = front.bridge.started.limits
        engine = front.config.engine
        return json_response(
            Readiness(
                True,
                limits.max_context_tokens,
                engine.max_sequences,
                kind=limits.kind,
                block_size=limits.block_size,
                step_tokens=engine.max_step_tokens,
                model=limits.model,
                layout=layout_fingerprint(front.bridge.started.peer.layout),
                weights=front.bridge.started.peer.layout.weights_version,
            )
        )

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(front.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/layout")
    async def layout() -> Response:
        """How other workers reach this one's KV cache: a Peer."""
        return json_response(front.bridge.started.peer)

    @routes.post("/drain")
    async def drain() -> Response:
        """Takes no new requests from now on; open streams go on. Answers how many there are."""
        front.draining = True
        return json_response({"draining": True, "open_streams": front.bridge.num_streams})

    @routes.get("/events")
    async def events() -> Response:
        """A stream of Events: the prefix cache as a snapshot, then every change, the load, and step timings."""

        async def produce(write: Write) -> None:
            with front.bridge.subscribe() as subscription:
                async for batch in subscription.batches():
                    await write(batch)

        return FrameResponse(produce)

    return routes


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError | Overloaded)
    return refusal(error)


async def _nobody_listens(_: Request, __: Exception) -> Response:
    return Response(status_code=400)
