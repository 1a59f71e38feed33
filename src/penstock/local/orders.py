"""What local mode and its nursery say to each other over their socket: one JSON message per packet."""

from typing import TypeAlias

import msgspec
from msgspec import Struct

from penstock.worker.config import WorkerConfig

MAX_PACKET_BYTES = 2**16


class Fork(Struct, frozen=True, tag=True):
    """Start this worker; the descriptor that travels with the packet becomes its stdout and stderr."""

    name: str
    worker: WorkerConfig


class Preloaded(Struct, frozen=True, tag=True):
    """The nursery has imported everything and can fork."""


class Forked(Struct, frozen=True, tag=True):
    """The worker runs as `pid`."""

    name: str
    pid: int


class Ready(Struct, frozen=True, tag=True):
    """Said by the worker itself: it takes requests."""

    name: str
    transport: str
    notes: tuple[str, ...]


class Refused(Struct, frozen=True, tag=True):
    """Said by the worker itself: it cannot start, for a reason that its configuration is to blame for."""

    name: str
    message: str


class Exited(Struct, frozen=True, tag=True):
    """The worker ended with this wait status."""

    name: str
    status: int


FromNursery: TypeAlias = Preloaded | Forked | Ready | Refused | Exited

_decoder = msgspec.json.Decoder(FromNursery)
_order_decoder = msgspec.json.Decoder(Fork)


def encode(message: Struct) -> bytes:
    """One packet."""
    return msgspec.json.encode(message)


def decode(packet: bytes) -> FromNursery:
    """What local mode reads."""
    message: FromNursery = _decoder.decode(packet)
    return message


def decode_order(packet: bytes) -> Fork:
    """What the nursery reads."""
    return _order_decoder.decode(packet)
