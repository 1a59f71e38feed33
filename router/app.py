"""The router's HTTP surface: OpenAI's paths, and those of operation. Read this first."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from penstock.errors import RequestError, WorkerLost
from penstock.router.config import RouterConfig
from penstock.router.dialect import dialect_of
from penstock.router.flow.advice import advice_headers
from penstock.router.gateway.open import open_picker
from penstock.router.http import is_from_this_machine, request_id_of
from penstock.router.openai.endpoint import Endpoint, Prepare
from penstock.router.openai.prepare import check_model, prepare_chat, prepare_completion
from penstock.router.openai.responses import Model, ModelList
from penstock.router.placement.drift import DRIFTS
from penstock.router.placement.explain import explain
from penstock.router.placement.journal import REMEMBERED
from penstock.router.probe import Probe
from penstock.router.services import Services

JSON = "application/json"
PREPARE: dict[str, tuple[str, Prepare]] = {
    "/v1/chat/completions": ("chat", prepare_chat),
    "/v1/completions": ("completions", prepare_completion),
}
"""Per path: what metrics call it, and who knows its body's form."""


def build_app(config: RouterConfig) -> FastAPI:
    """The ASGI application; its Services are at `app.state.services`. Raises ConfigError."""
    services = Services(config)
    picker = open_picker(services, PREPARE)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with services.running(), picker:
            yield

    app = FastAPI(
        title="Penstock router",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    app.add_exception_handler(HTTPException, _http_error)
    # Plain ASGI endpoints: no dependency solving and no pydantic where every token passes.
    endpoints = {path: Endpoint(services, name, prepare) for path, (name, prepare) in PREPARE.items()}
    for path, endpoint in endpoints.items():
        app.router.routes.append(Route(path, endpoint, methods=["POST"]))
    app.state.endpoints = endpoints
    _add_models(app, services)
    _add_operation(app, services)
    return app


class Direct:
    """The application, whose busiest paths skip FastAPI's layers: each of them would wrap every event of a stream."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._endpoints: dict[str, Endpoint] = app.state.endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope.get("path", "")) if scope.get("method") == "POST" else None
        await (self._app if endpoint is None else endpoint)(scope, receive, send)


def _add_models(app: FastAPI, services: Services) -> None:
    model = Model(services.model.name, services.model.created)

    async def list_models(request: Request) -> Response:
        try:
            services.tenant(request.scope)
        except RequestError as error:
            return _refusal(request, error)
        return Response(msgspec.json.encode(ModelList([model])), media_type=JSON)

    async def get_model(request: Request) -> Response:
        try:
            services.tenant(request.scope)
            check_model(request.path_params["model"], services.model)
        except RequestError as error:
            return _refusal(request, error)
        return Response(msgspec.json.encode(model), media_type=JSON)

    app.add_route("/v1/models", list_models, methods=["GET"])
    app.add_route("/v1/models/{model:path}", get_model, methods=["GET"])


def _add_operation(app: FastAPI, services: Services) -> None:
    probes = Probe()

    async def health(_: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type=JSON)

    async def ready(_: Request) -> Response:
        status = {
            "ready": services.ready,
            "draining": services.draining,
            "drift": services.journal.alarms,
            "workers": {
                worker.url: {"role": worker.role, "ready": worker.ready} | ({"why": worker.why} if worker.why else {})
                for worker in services.cluster.workers
            },
        }
        return Response(msgspec.json.encode(status), 200 if services.ready else 503, media_type=JSON)

    async def metrics(_: Request) -> Response:
        found, books = services.metrics, services.cluster.books
        for gauge in (found.refused_timings, found.worker_ready, found.worker_odd, found.worker_streams):
            gauge.clear()  # a worker that has left must not seem ready for ever
        for worker in services.cluster.workers:
            found.refused_timings.labels(worker.url).set(books.model.refused(worker.url))
            found.worker_ready.labels(worker.url, worker.role).set(worker.ready)
            found.worker_streams.labels(worker.url, worker.role).set(books.in_flight(worker.url)[0])
            if what := services.cluster.oddity(worker):
                found.worker_odd.labels(worker.url, worker.role, what).set(1)
        for name in DRIFTS:
            found.drift_alarm.labels(name).set(name in services.journal.alarms)
        try:
            beside = await services.metrics_beside() if services.config.beside else b""
        except WorkerLost as error:  # half of the metrics would be taken for an idle worker's
            raise HTTPException(503, str(error)) from error
        return Response(found.render() + beside, media_type="text/plain; version=0.0.4")

    async def drain(request: Request) -> Response:
        """Nothing turns it back, so it is neither for everyone who may ask the model nor for web pages that this
        machine's browser shows."""
        if not is_from_this_machine(request.scope) or "origin" in request.headers:
            raise HTTPException(
                403, "/drain is taken from this machine only, and not from web pages; SIGTERM drains as well"
            )
        services.draining = True
        return Response(msgspec.json.encode({"running": len(services.lifelines)}), media_type=JSON)

    async def explain_placement(request: Request) -> Response:
        """Where a request was placed, what else could have been, and the seconds of each."""
        if not is_from_this_machine(request.scope):
            raise HTTPException(403, "/explain is answered to this machine only")
        request_id = request.path_params["request_id"]
        decision = services.journal.find(request_id)
        if decision is None:
            message = (
                f"no placement of {request_id} is remembered; the last {REMEMBERED} are. Each router remembers its "
                "own: ask the one that took the request"
            )
            return _refusal(request, RequestError(message, status=404, code="not_found"))
        not_used = {worker.url: worker.why for worker in services.cluster.workers if not worker.ready}
        return Response(msgspec.json.encode(explain(decision, not_used)), media_type=JSON)

    async def probe(_: Request) -> Response:
        """Moves a few KV blocks over every pair of workers, and says what became of them."""
        cluster = services.cluster.snapshot()
        tried = await probes.run(services.placer.session, cluster, services.model.vocab_size)
        return Response(msgspec.json.encode({"pairs": tried}), media_type=JSON)

    app.add_route("/health", health, methods=["GET"])
    app.add_route("/ready", ready, methods=["GET"])
    app.add_route("/metrics", metrics, methods=["GET"])
    app.add_route("/drain", drain, methods=["POST"])
    app.add_route("/explain/{request_id}", explain_placement, methods=["GET"])
    app.add_route("/probe", probe, methods=["POST"])


async def _http_error(request: Request, error: Exception) -> Response:
    """Wrong paths, methods and peers."""
    assert isinstance(error, HTTPException)
    said = {
        404: f"there is no {request.url.path} here",
        405: f"{request.url.path} does not take {request.method}",
    }.get(error.status_code, error.detail)
    code = {403: "forbidden", 404: "not_found"}.get(error.status_code)
    return _refusal(request, RequestError(said, status=error.status_code, code=code), error.headers)


def _refusal(request: Request, error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
    dialect, request_id = dialect_of(request.scope), request_id_of(request.scope)
    told = {name.decode(): value.decode() for name, value in advice_headers(error)}
    told |= {name.decode(): request_id for name in dialect.id_headers}
    return Response(dialect.error_body(error, request_id), error.status, {**(headers or {}), **told}, JSON)
