"""Watches the EndpointSlices of the router's own deployment and keeps the cluster's members equal to them.

Without answers from the API server the last known members stay: streams and new requests go on through an outage, and
after it one list tells all that was missed, deletions too.

Plain aiohttp, which the router has anyway: importing `kubernetes.aio` costs the router 0.33 s at start and 19 MB on 58
(measured), for one list and one watch.
"""

import asyncio
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec

from penstock.address import bracketed
from penstock.errors import ConfigError, PenstockError, reason_of
from penstock.router.cluster import Member
from penstock.router.endpoint_slices import (
    EndpointSlice,
    EndpointSliceList,
    Slices,
    Status,
    WatchEvent,
    after,
    listed,
    members,
)

WATCH_S = 60.0
"""The API server ends a watch after this long, and the next one goes on from there: a half-open connection, over which
nothing comes, is noticed WATCH_SILENCE_S after the last event."""
WATCH_SILENCE_S = 75.0
REQUEST_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Between two attempts while the API server does not answer; within 5 s of its return members are true again."""
LINE_BYTES = 2**22
"""A slice holds up to 1,000 endpoints."""
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

log = logging.getLogger(__name__)

_read_list = msgspec.json.Decoder(EndpointSliceList).decode
_read_event = msgspec.json.Decoder(WatchEvent).decode
_read_slice = msgspec.json.Decoder(EndpointSlice).decode
_read_status = msgspec.json.Decoder(Status).decode


class ApiError(PenstockError):
    """The API server refuses, or speaks in riddles."""


class Expired(ApiError):
    """The version that a watch should go on from is too old: list again."""


@dataclass(frozen=True)
class Api:
    """How to reach the API server: its URL, the namespace, and a token that is read anew for every request, since
    Kubernetes replaces it every hour."""

    url: str
    namespace: str
    token_file: Path | None = None
    authority_file: Path | None = None

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token_file.read_text().strip()}"} if self.token_file else {}

    def connector(self) -> aiohttp.TCPConnector:
        if self.authority_file is None:
            return aiohttp.TCPConnector()
        return aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=self.authority_file))


def api_of_this_pod() -> Api:
    """As Kubernetes tells every pod. Raises ConfigError outside of one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (ACCOUNT / "token").is_file():
        raise ConfigError("--discover works only in a pod with a ServiceAccount; elsewhere set --prefill and --decode")
    namespace = (ACCOUNT / "namespace").read_text().strip()
    return Api(f"https://{bracketed(host)}:{port}", namespace, ACCOUNT / "token", ACCOUNT / "ca.crt")


async def discover(
    api: Api, selector: str, show: Callable[[frozenset[Member]], None], count_error: Callable[[], None]
) -> None:
    """Calls `show` with all members whenever they may have changed, until cancelled."""
    async with aiohttp.ClientSession(connector=api.connector(), trust_env=False) as session:
        watcher = _Watcher(session, api, selector)
        pause_s = 0.0
        while True:
            try:
                async for slices in watcher.follow():
                    show(members(slices))
                    pause_s = 0.0
            except Expired as error:
                log.info("listing workers again: %s", error)
            except Exception as error:  # whatever it is: watching goes on
                count_error()
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s or FIRST_PAUSE_S)
                reason = reason_of(error)
                log.warning("workers cannot be watched, those known stay; again in %.1f s: %s", pause_s, reason)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))


class _Watcher:
    """One list and the watches after it."""

    def __init__(self, session: aiohttp.ClientSession, api: Api, selector: str) -> None:
        self._session, self._api, self._selector = session, api, selector
        self._url = f"{api.url}/apis/discovery.k8s.io/v1/namespaces/{api.namespace}/endpointslices"

    async def follow(self) -> AsyncIterator[Slices]:
        """What exists, then again after every change. Raises Expired, ApiError or what aiohttp raises."""
        answer = await self._list()
        slices, version = listed(answer.items or ()), answer.metadata.resource_version
        yield slices
        while True:
            async for kind, item in self._watch(version):
                version = item.metadata.resource_version or version
                if kind != "BOOKMARK":
                    slices = after(slices, kind, item)
                    yield slices
            await asyncio.sleep(FIRST_PAUSE_S)  # should it end every watch at once

    async def _list(self) -> EndpointSliceList:
        timeout = aiohttp.ClientTimeout(total=REQUEST_S)
        async with self._get({}, timeout) as response:
            await _check(response)
            return _read_list(await response.read())

    async def _watch(self, version: str) -> AsyncIterator[tuple[str, EndpointSlice]]:
        """The events after `version`, until the API server ends the watch."""
        options = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(WATCH_S)),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_S, sock_read=WATCH_SILENCE_S)
        async with self._get(options, timeout) as response:
            await _check(response)
            async for line in response.content:
                event = _read_event(line)
                if event.type == "ERROR":
                    raise _error(_read_status(event.object))
                yield event.type, _read_slice(event.object)

    def _get(self, options: dict[str, str], timeout: aiohttp.ClientTimeout) -> "aiohttp.client._RequestContextManager":
        return self._session.get(
            self._url,
            params={"labelSelector": self._selector, **options},
            headers=self._api.headers(),
            timeout=timeout,
            read_bufsize=LINE_BYTES,
        )


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        body = await response.read()
        try:
            status = _read_status(body)
        except msgspec.DecodeError:
            status = Status(message=body[:200].decode(errors="replace"))
        raise _error(Status(response.status, status.message))


def _error(status: Status) -> ApiError:
    said = f"HTTP {status.code}: {status.message}"
    if status.code == 410:
        return Expired(said)
    hint = "; the router's Role must allow list and watch of endpointslices" if status.code == 403 else ""
    return ApiError(said + hint)
