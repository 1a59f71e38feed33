"""Which workers a deployment's EndpointSlices list: pure, so that any order of events can be tested.

Kubernetes copies a Service's labels to its slices. The operator makes one headless Service per pool and revision, so
the labels say what the workers are. A slice lists a pod as soon as it has an address (publishNotReadyAddresses):
whether a worker is ready is learned by asking it, which is faster and goes on when the API server does not answer.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from penstock.address import bracketed
from penstock.router.cluster import Member
from penstock.router.policy import Role

ROLE_LABEL = "serving.penstock.dev/role"
REVISION_LABEL = "serving.penstock.dev/revision"
PORT_NAME = "http"


class Metadata(Struct, rename="camel"):
    """What is read of metadata, of objects and of lists."""

    name: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None


class Conditions(Struct):
    terminating: bool | None = None


class Endpoint(Struct, rename="camel"):
    node_name: str | None = None
    addresses: tuple[str, ...] = ()
    conditions: Conditions = msgspec.field(default_factory=Conditions)


class Port(Struct):
    name: str | None = None
    port: int | None = None


class EndpointSlice(Struct, rename="camel"):
    """What is read of a discovery.k8s.io/v1 EndpointSlice. Go writes null for an empty list."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    address_type: str = "IPv4"
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[Port, ...] | None = None


class EndpointSliceList(Struct):
    metadata: Metadata
    items: tuple[EndpointSlice, ...] | None = None


class Status(Struct):
    """What the API server sends instead of an object when it cannot go on."""

    code: int = 0
    message: str = ""


class WatchEvent(Struct):
    """One line of a watch."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


Slices: TypeAlias = Mapping[str, frozenset[Member]]
"""The members by name of slice. One member may be in two while Kubernetes moves it from one to the other."""


def listed(items: Iterable[EndpointSlice]) -> Slices:
    """All that exists now; what was known before and is not in it is gone."""
    return {item.metadata.name: members_of(item) for item in items}


def after(slices: Slices, kind: str, item: EndpointSlice) -> Slices:
    """`slices` after one ADDED, MODIFIED or DELETED event about `item`."""
    others = {name: members for name, members in slices.items() if name != item.metadata.name}
    return others if kind == "DELETED" else others | {item.metadata.name: members_of(item)}


def members(slices: Slices) -> frozenset[Member]:
    """Everyone who is in some slice."""
    return frozenset().union(*slices.values())


def members_of(item: EndpointSlice) -> frozenset[Member]:
    """The workers that a slice lists, without those that are terminating; none if it is not one of workers."""
    labels = item.metadata.labels or {}
    role = _role(labels.get(ROLE_LABEL))
    port = next((port.port for port in item.ports or () if port.name == PORT_NAME), None)
    if role is None or port is None:
        return frozenset()
    revision = labels.get(REVISION_LABEL, "")
    return frozenset(
        Member(f"http://{bracketed(endpoint.addresses[0])}:{port}", role, revision, endpoint.node_name or "")
        for endpoint in item.endpoints or ()
        if endpoint.addresses and not endpoint.conditions.terminating
    )


def _role(label: str | None) -> Role | None:
    return "prefill" if label == "prefill" else "decode" if label == "decode" else None
