"""A router beside one decode worker: the API at the endpoint that somebody else's gateway sends requests to.

It is an ordinary router but for its policy: its own worker decodes, and another one only when that is lost, so that
streams go on. Who computes the prompt may be said by the gateway's endpoint picker, in a header.
"""

import re
from dataclasses import replace

from starlette.types import Scope

from penstock.address import authority
from penstock.router.http import header
from penstock.router.policy import ClusterSnapshot, Picked, Placement, PlacementRequest, Policy, WorkerState

PREFILL_HEADER = b"x-prefiller-host-port"
"""As llm-d's endpoint picker tells its sidecars."""
SOURCE_HEADER = b"x-penstock-source"
PRIORITY_HEADER = b"x-penstock-priority"
_PRIORITY = re.compile(r"-?[0-9]{1,9}")


def picked_of(scope: Scope) -> Picked | None:
    """What the headers say; None when the picker leaves it to this router, as those do that know no prefill workers."""
    prefill = header(scope, PREFILL_HEADER)
    if not prefill:
        return None
    priority = header(scope, PRIORITY_HEADER) or ""
    return Picked(prefill, header(scope, SOURCE_HEADER) or "", int(priority) if _PRIORITY.fullmatch(priority) else 0)


class Beside:
    """Pure, as every policy."""

    def __init__(self, url: str, policy: Policy) -> None:
        """`url` is the own worker's; `policy` decides what is left open."""
        self._url = url
        self._policy = policy

    def choose(self, request: PlacementRequest, cluster: ClusterSnapshot) -> Placement | None:
        """See policy.Policy."""
        own = next((worker for worker in cluster.decode if worker.url == self._url), None)
        if own is None:
            return self._policy.choose(request, cluster)
        if own.url in request.excluded:
            return None
        as_picked = _as_picked(request, cluster, own)
        return as_picked or self._policy.choose(request, replace(cluster, decode=(own,)))


def _as_picked(request: PlacementRequest, cluster: ClusterSnapshot, own: WorkerState) -> Placement | None:
    """None when that is no longer possible. A header may come from anybody: it can only name workers that are known."""
    if request.picked is None:
        return None
    names: dict[str, str] = {}
    for worker in (*cluster.prefill, *cluster.decode):
        if worker.revision == own.revision and worker.url not in request.excluded:
            name = authority(worker.url)
            names[name] = names[_host(name)] = worker.url
    wanted = (request.picked.prefill, request.picked.source)
    prefill, source = (names.get(name) or names.get(_host(name)) for name in wanted)
    if prefill is None:
        return None
    return Placement(own.url, None if prefill == own.url else prefill, source)


def _host(name: str) -> str:
    """Without the port: llm-d's picker takes every pod's to be that of the InferencePool."""
    return name.rpartition(":")[0]
