"""The seam between the puller and the wire: one-sided reads of a peer's KV blocks and of their epochs.

A transport knows addresses and bytes; it knows no tickets, requests or sequences.

The memory rule, for every transport: from the call that starts a read until its `poll` returned True or raised, the
destination may be written at any moment, however long that takes. Nothing here can cancel a read.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from penstock.errors import ConfigError, TransferError

logger = logging.getLogger(__name__)

Epochs = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Regions:
    """The memory a worker lets its peers read, and the pool its own reads land in.

    `kv` is contiguous, any dtype, with the block as dimension 0: block i is one range of `block_bytes`. `epochs` is
    uint64 [num_blocks]. Both must outlive the transport and never move.
    """

    kv: torch.Tensor
    epochs: Epochs

    def __post_init__(self) -> None:
        if not self.kv.is_contiguous():
            raise ValueError(f"kv of shape {tuple(self.kv.shape)} is not contiguous: a block must be one range")
        if self.epochs.dtype != np.uint64 or self.epochs.shape != self.kv.shape[:1]:
            raise ValueError(
                f"epochs must be uint64 [{self.kv.shape[0]}], got {self.epochs.dtype} {list(self.epochs.shape)}"
            )
        if not self.epochs.flags.c_contiguous:
            raise ValueError("epochs are not contiguous")

    @property
    def num_blocks(self) -> int:
        return self.kv.shape[0]

    @property
    def block_bytes(self) -> int:
        return self.kv[0].nbytes


class Read(Protocol):
    """A read that was started."""

    epochs: Epochs | None
    """What `read_epochs` read, once `poll` returned True; None for a read of blocks."""

    def poll(self) -> bool:
        """True once every byte has landed. Raises TransferError when the read failed and nothing more can land."""
        ...


class Transport(Protocol):
    """One-sided reads between workers. One thread calls it: the puller's, until that has ended."""

    name: str
    endpoint: bytes
    """What a peer's `connect` needs: goes into `protocol.Peer.endpoints[name]`."""
    idle_s: float
    """The longest that `progress` may be left uncalled while no read is in flight, in seconds."""

    def connect(self, generation: str, endpoint: bytes) -> None:
        """Makes a peer readable; does nothing if it is. Raises TransferError for a peer that cannot be."""
        ...

    def read_blocks(self, generation: str, pairs: Sequence[tuple[int, int]]) -> Read:
        """Starts reading (remote block, local block) pairs. Raises TransferError if nothing was started."""
        ...

    def read_epochs(self, generation: str, first: int, count: int) -> Read:
        """Starts reading the epochs of the peer's blocks [first, first + count) as one range."""
        ...

    def progress(self) -> None:
        """Moves reads on, and serves peers where the transport needs that. Cheap; call it before polling reads."""
        ...

    def fileno(self) -> int:
        """A descriptor that becomes readable when `progress` has something to do."""
        ...

    def disconnect(self, generation: str) -> None:
        """Forgets a peer. Reads in flight go on, or raise; they must still be polled to their end."""
        ...

    def close(self) -> None:
        """Stops serving and frees everything, except memory that a read in flight may still write to."""
        ...


def make_transport(name: str, regions: Regions, *, host: str = "127.0.0.1") -> Transport:
    """The transport called `name`: the one place that decides how KV moves. Raises ConfigError.

    "auto" is nixl where it works, else tcp, with one warning that says why. `host` is where the tcp transport listens
    and what its peers are told; UCX finds its own devices (UCX_NET_DEVICES).
    """
    # Imported here because both build on this module.
    from penstock.engine.transfer.nixl import NixlTransport
    from penstock.engine.transfer.tcp import TcpTransport

    if name == "tcp":
        return TcpTransport(regions, host=host)
    if name not in ("auto", "nixl"):
        raise ConfigError(f"transport {name!r} is unknown; choose auto, nixl or tcp")
    try:
        return NixlTransport(regions)
    except ConfigError as error:
        if name == "nixl" or regions.kv.is_cuda:
            raise
        logger.warning("KV moves over plain tcp: %s", error)
        return TcpTransport(regions, host=host)


class Endpoint(msgspec.Struct, frozen=True, array_like=True):
    """What a reader must know of a peer's memory, whatever the transport; each adds how to reach it."""

    num_blocks: int
    block_bytes: int


E = TypeVar("E", bound=Endpoint)


def read_endpoint(generation: str, endpoint: bytes, kind: type[E], regions: Regions) -> E:
    """A peer's endpoint. Raises TransferError when it is another transport's, or its blocks are not of our size."""
    try:
        remote = msgspec.msgpack.decode(endpoint, type=kind)
    except msgspec.DecodeError as error:
        raise TransferError(f"peer {generation}: not an endpoint of this transport: {error}") from error
    if remote.block_bytes != regions.block_bytes:
        local = regions.block_bytes
        raise TransferError(f"peer {generation} has blocks of {remote.block_bytes} bytes, this worker of {local}")
    return remote
