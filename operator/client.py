"""The one way to the API server: requests in JSON over `kubernetes.aio`, with deadlines, typed errors and metrics.

The package's typed methods cost 0.7 ms of CPU per call in pydantic models that nobody here needs; its ApiClient (hosts,
TLS, tokens that rotate) and its aiohttp session are used as they are.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from penstock.errors import ConfigError, PenstockError, reason_of
from penstock.operator.metrics import Metrics

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
REQUEST_S = 8.0
"""Longest that one request may take."""
_UNCHECKED = {"fieldValidation": "Ignore"}
"""Else the API server reads every manifest a second time to warn of unknown fields, and nobody here reads warnings.
Server-side apply refuses unknown fields all the same."""
_MISTAKES = ("failed to create typed patch object", "failed to convert new object")
"""How the API server begins when an applied field does not exist, or its value cannot be one. It calls that 500, as if
it were its own fault (kubernetes/kubernetes#139253), so asking again would look sensible."""

Object = dict[str, Any]


class ApiError(PenstockError):
    """The API server refused a request; `status` is HTTP's, `reason` Kubernetes'."""

    def __init__(self, message: str, *, status: int, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class ApiUnavailable(PenstockError):
    """The API server does not answer."""


class Client:
    """Use `connect` to get one."""

    def __init__(self, api: kubernetes_client.ApiClient, metrics: Metrics) -> None:
        self._api = api
        self._metrics = metrics

    async def get(self, path: str, **query: Any) -> Any:
        return await self.request("GET", path, query)

    async def text(self, path: str, **query: Any) -> str:
        """What is not JSON: logs."""
        return (await self._bytes("GET", path, query)).decode(errors="replace")

    async def apply(self, path: str, manifest: Object, *, manager: str, force: bool) -> Object:
        """Server-side apply."""
        query = {"fieldManager": manager, "force": "true" if force else "false"} | _UNCHECKED
        return await self._object("PATCH", path, query, manifest, APPLY)

    async def merge(self, path: str, change: Object, *, manager: str) -> Object:
        """A JSON merge patch."""
        return await self._object("PATCH", path, {"fieldManager": manager} | _UNCHECKED, change, MERGE)

    async def create(self, path: str, manifest: Object, *, manager: str) -> Object:
        return await self._object("POST", path, {"fieldManager": manager} | _UNCHECKED, manifest)

    async def replace(self, path: str, manifest: Object) -> Object:
        return await self._object("PUT", path, {}, manifest)

    async def delete(self, path: str, uid: str) -> None:
        """Deletes this very object, and then what it owns. Raises ApiError 409 when it is another one by now."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        await self.request("DELETE", path, {}, options)

    async def request(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """The decoded JSON of the answer. Raises ApiError or ApiUnavailable."""
        data = await self._bytes(method, path, query, body, content_type)
        return msgspec.json.decode(data) if data else None

    async def _bytes(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        begin = time.perf_counter()
        status = "unreachable"
        try:
            response = await self._send(method, path, query, body, content_type, REQUEST_S)
            status = str(response.status)
            async with asyncio.timeout(REQUEST_S):
                data = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError, ssl.SSLError) as error:
            raise ApiUnavailable(f"{method} {path}: {reason_of(error)}") from error
        finally:
            self._metrics.api_calls.labels(*access_of(method, path), status).inc()
            self._metrics.api_seconds.labels(method).observe(time.perf_counter() - begin)
        if response.status >= 400:
            raise _refusal(method, path, response.status, response.headers.get("Retry-After"), data)
        return data

    @asynccontextmanager
    async def stream(self, path: str, query: dict[str, Any], seconds: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of a watch that lasts at most `seconds`."""
        try:
            response = await self._send("GET", path, query, None, "application/json", seconds)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ApiUnavailable(f"watch {path}: {reason_of(error)}") from error
        self._metrics.api_calls.labels(*access_of("WATCH", path), str(response.status)).inc()
        try:
            if response.status >= 400:
                raise _refusal("WATCH", path, response.status, None, await response.read())
            yield _lines(path, response)
        finally:
            response.close()

    async def _object(
        self, method: str, path: str, query: dict[str, Any], body: Object, content_type: str = "application/json"
    ) -> Object:
        answer: Object = await self.request(method, path, query, body, content_type)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None,
        body: Object | None,
        content_type: str,
        seconds: float,
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = self._api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=3.0)
        rest: Any = self._api.rest_client  # its methods have no types
        answer = await rest.request(method, url, headers, body, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        return response


@asynccontextmanager
async def connect(metrics: Metrics | None = None, *, connections: int = 64) -> AsyncIterator[Client]:
    """A client for the cluster this pod runs in, else for the one that KUBECONFIG names. Raises ConfigError."""
    configuration = kubernetes_client.Configuration()
    loaders: Any = kubernetes_config  # its functions have no types
    try:
        loaders.load_incluster_config(client_configuration=configuration)
    except kubernetes_config.ConfigException:
        try:
            await loaders.load_kube_config(client_configuration=configuration)
        except (kubernetes_config.ConfigException, OSError) as error:
            raise ConfigError(
                f"no cluster: not in a pod, and no usable kubeconfig ({error}); set KUBECONFIG"
            ) from error
    configuration.connection_pool_maxsize = connections
    async with kubernetes_client.ApiClient(configuration) as api:
        yield Client(api, metrics or Metrics())


async def _lines(path: str, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        while line := await response.content.readline():
            yield line
    except TimeoutError:
        return
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise ApiUnavailable(f"watch {path}: {reason_of(error)}") from error


def access_of(method: str, path: str) -> tuple[str, str]:
    """Verb and resource of a request as a Role names them: ("patch", "apps/deployments"), ("list", "pods")."""
    parts = path.strip("/").split("/")
    group, parts = ("", parts[2:]) if parts[0] == "api" else (parts[1] + "/" if parts[1:] else "", parts[3:])
    if parts[:1] == ["namespaces"]:
        parts = parts[2:]
    plural, name, subresource = (parts[0] if parts else ""), parts[1:2], parts[2:3]
    verb = {"POST": "create", "PUT": "update"}.get(method, method.lower())
    if method == "GET" and not name:
        verb = "list"
    return verb, "/".join([group + plural, *subresource])


def _refusal(method: str, path: str, status: int, retry_after: str | None, data: bytes) -> ApiError:
    try:
        said = json.loads(data)
        message, reason = said.get("message", ""), said.get("reason", "")
    except (ValueError, AttributeError):
        message, reason = data[:200].decode(errors="replace"), ""
    if message.startswith(_MISTAKES):
        status = 400
    retry_after_s = float(retry_after) if retry_after and retry_after.isdigit() else None
    return ApiError(
        f"{method} {path}: {message or f'HTTP {status}'}", status=status, reason=reason, retry_after_s=retry_after_s
    )
