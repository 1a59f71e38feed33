"""NIXL over UCX: the default transport. RDMA where there is some, cma on one host, tcp otherwise.

Measured with nixl-cu12 1.5.1 on a 2-core host:
- NIXL's progress thread spins on a whole core, so it is off, and `progress` does its work. A peer needs that work when
  somebody connects to it and, over tcp, to serve every read.
- Nobody has to poll for it: UCX keeps its sockets in epoll descriptors, and waiting on them costs neither CPU nor
  latency (24 KiB over tcp: 160 us, as with a spinning owner; with a 1 ms timer instead: 1,150 us and 3 % of a core).
  NIXL does not hand these descriptors out; `ucx.watch` finds them, and `idle_s` covers what they miss.
- A handle in state PROC must never be released: its bytes still land. It is polled until it is DONE or raises.
- Over tcp, UCX abort()s a process that was frozen while one of its readers died in the middle of many reads (5 of 5;
  never over cma, never unfrozen): the worker sees its engine die of SIGABRT and restarts it.
"""

import importlib
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.engine.transfer import ucx
from penstock.engine.transfer.transport import Endpoint, Epochs, Read, Regions, read_endpoint
from penstock.errors import ConfigError, TransferError

logger = logging.getLogger(__name__)

_WHEELS = ("nixl_cu12", "nixl_cu13", "nixl")

_kept: list[object] = []
"""Transports closed with reads in flight: what those may still write to lives as long as the process."""


class _Endpoint(Endpoint, frozen=True, array_like=True):
    metadata: bytes
    kv_address: int
    epochs_address: int
    memory: str
    device: int


@dataclass(slots=True, eq=False)
class _Peer:
    """A remote agent. NIXL forgets it only when none of its reads is in flight."""

    generation: str
    endpoint: _Endpoint
    agent_name: Any
    blocks: Any
    """Descriptors of the peer's whole pool, prepared once."""
    reads: int = 0
    lost: str = ""
    """Why no new read may start; empty while the peer is fine."""


class _NixlRead:
    """One transfer handle, and the registered scratch buffer if it reads epochs."""

    def __init__(
        self,
        check: "Callable[[_NixlRead], bool]",
        peer: _Peer,
        handle: Any,
        scratch: Epochs | None = None,
        count: int = 0,
    ) -> None:
        self.epochs: Epochs | None = None
        self.check = check
        self.peer = peer
        self.handle = handle
        self.scratch = scratch
        self.count = count

    def poll(self) -> bool:
        return self.handle is None or self.check(self)


class NixlTransport:
    """Reads peers' memory through one NIXL agent; see `Transport` for the contract."""

    name = "nixl"

    def __init__(self, regions: Regions) -> None:
        ucx.prepare_environment()
        nixl = import_nixl()
        others = ucx.epoll_descriptors()
        try:
            self._agent = nixl.nixl_agent(uuid.uuid4().hex, nixl.nixl_agent_config(enable_prog_thread=False))
        except Exception as error:  # the bindings' errors share no base class
            raise ConfigError(f"NIXL cannot start: {error}") from error
        if "UCX" not in self._agent.backends:
            raise ConfigError("this NIXL has no UCX backend; reinstall nixl-cu12 or choose the tcp transport")
        # 20 ms, under 1 % of a core, bounds what wakes no descriptor (RDMA set-up). 1 ms: no better way left.
        self._epoll, watched = ucx.watch(ucx.epoll_descriptors() - others)
        self.idle_s = 0.02 if watched else 0.001

        self._regions = regions
        self._registered: list[Any] = []
        memory, device = ("VRAM", regions.kv.get_device()) if regions.kv.is_cuda else ("DRAM", 0)
        kv, epochs = regions.kv.data_ptr(), regions.epochs.ctypes.data
        self._register(kv, regions.kv.nbytes, memory, device)
        self._register(epochs, regions.epochs.nbytes, "DRAM", 0)
        own = _Endpoint(
            regions.num_blocks, regions.block_bytes, self._agent.get_agent_metadata(), kv, epochs, memory, device
        )
        self.endpoint = msgspec.msgpack.encode(own)
        self._blocks = self._block_list("NIXL_INIT_AGENT", own)
        self._peers: dict[str, _Peer] = {}
        self._reads: set[_NixlRead] = set()
        self._scratch: list[Epochs] = []

    def connect(self, generation: str, endpoint: bytes) -> None:
        known = self._peers.get(generation)
        if known is not None:
            if known.lost:
                raise TransferError(f"peer {generation} still has reads in flight: {known.lost}")
            return
        remote = read_endpoint(generation, endpoint, _Endpoint, self._regions)
        try:
            agent_name = self._agent.add_remote_agent(remote.metadata)
            blocks = self._block_list(agent_name, remote)
        except Exception as error:
            raise TransferError(f"cannot connect to peer {generation}: {error}") from error
        self._peers[generation] = _Peer(generation, remote, agent_name, blocks)

    def read_blocks(self, generation: str, pairs: Sequence[tuple[int, int]]) -> Read:
        peer = self._peer(generation)
        indices = np.array(pairs, dtype=np.int32).reshape(-1, 2)
        remote, local = np.ascontiguousarray(indices[:, 0]), np.ascontiguousarray(indices[:, 1])
        _check_range(remote, peer.endpoint.num_blocks, f"peer {generation}")
        _check_range(local, self._regions.num_blocks, "this worker")
        try:  # NIXL merges neighbours itself
            handle = self._agent.make_prepped_xfer("READ", self._blocks, local, peer.blocks, remote)
        except Exception as error:
            raise self._lose(peer, error) from error
        return self._start(_NixlRead(self._check, peer, handle))

    def read_epochs(self, generation: str, first: int, count: int) -> Read:
        peer = self._peer(generation)
        _check_range(np.array([first, first + count - 1]), peer.endpoint.num_blocks, f"peer {generation}")
        scratch = self._take_scratch(count)
        try:
            local = self._agent.get_xfer_descs([(scratch.ctypes.data, 8 * count, 0)], "DRAM")
            remote = self._agent.get_xfer_descs([(peer.endpoint.epochs_address + 8 * first, 8 * count, 0)], "DRAM")
            handle = self._agent.initialize_xfer("READ", local, remote, peer.agent_name)
        except Exception as error:
            self._scratch.append(scratch)
            raise self._lose(peer, error) from error
        return self._start(_NixlRead(self._check, peer, handle, scratch, count))

    def progress(self) -> None:
        # NIXL's only call that moves UCX on without a handle; nobody sends notifications.
        self._agent.agent.getNotifs({}, [])

    def fileno(self) -> int:
        return self._epoll.fileno()

    def disconnect(self, generation: str) -> None:
        peer = self._peers.get(generation)
        if peer is not None:
            peer.lost = peer.lost or "disconnected"
            self._remove_if_unused(peer)

    def close(self) -> None:
        if self._epoll.closed:
            return
        self._epoll.close()
        if self._reads:
            logger.warning("closed with %d reads in flight; their memory is kept until exit", len(self._reads))
            _kept.append(self)
            return
        for generation in list(self._peers):
            self.disconnect(generation)
        self._blocks.release()
        for descriptors in self._registered:
            self._agent.deregister_memory(descriptors)
        del self._agent, self._blocks

    def _start(self, read: _NixlRead) -> Read:
        read.peer.reads += 1
        self._reads.add(read)
        self._step(read, self._agent.transfer)
        return read

    def _check(self, read: _NixlRead) -> bool:
        return self._step(read, self._agent.check_xfer_state)

    def _step(self, read: _NixlRead, call: Callable[[Any], str]) -> bool:
        """Posts or checks a read: True when DONE, raises when it failed; its handle is released in both cases."""
        try:
            state = call(read.handle)
            if state == "ERR":
                raise RuntimeError("state ERR")
        except Exception as error:
            self._end(read)
            raise self._lose(read.peer, error) from error
        if state == "PROC":
            return False
        if read.scratch is not None:
            read.epochs = read.scratch[: read.count].copy()
        self._end(read)
        return True

    def _end(self, read: _NixlRead) -> None:
        handle, read.handle = read.handle, None
        try:
            handle.release()
        except Exception as error:
            logger.warning("NIXL kept the handle of a failed read: %s", error)
        if read.scratch is not None:
            self._scratch.append(read.scratch)
        self._reads.discard(read)
        read.peer.reads -= 1
        self._remove_if_unused(read.peer)

    def _lose(self, peer: _Peer, error: Exception) -> TransferError:
        """After any error a peer must be met anew, which NIXL allows only once its last read has ended."""
        peer.lost = peer.lost or f"lost: {type(error).__name__}: {error}"
        self._remove_if_unused(peer)
        return TransferError(f"peer {peer.generation} is {peer.lost}")

    def _remove_if_unused(self, peer: _Peer) -> None:
        if peer.lost and peer.reads == 0 and self._peers.get(peer.generation) is peer:
            del self._peers[peer.generation]
            try:
                peer.blocks.release()
                self._agent.remove_remote_agent(peer.agent_name)
            except Exception as error:
                logger.warning("NIXL did not let go of peer %s: %s", peer.generation, error)

    def _peer(self, generation: str) -> _Peer:
        peer = self._peers.get(generation)
        if peer is None or peer.lost:
            raise TransferError(f"peer {generation} is {peer.lost if peer else 'not connected'}")
        return peer

    def _register(self, address: int, num_bytes: int, memory: str, device: int) -> None:
        self._registered.append(self._agent.register_memory([(address, num_bytes, device, "")], memory))

    def _block_list(self, agent_name: Any, of: _Endpoint) -> Any:
        strided = np.array([[of.kv_address, of.block_bytes, of.device, of.block_bytes, of.num_blocks]], dtype=np.uint64)
        return self._agent.prep_xfer_dlist(agent_name, strided, of.memory)

    def _take_scratch(self, count: int) -> Epochs:
        for index, scratch in enumerate(self._scratch):
            if scratch.size >= count:
                return self._scratch.pop(index)
        scratch = np.zeros(max(count, self._regions.num_blocks), dtype=np.uint64)
        self._register(scratch.ctypes.data, scratch.nbytes, "DRAM", 0)
        return scratch


def import_nixl() -> Any:
    """The NIXL module of whichever wheel is installed. Raises ConfigError naming what to install."""
    reasons = []
    for wheel in _WHEELS:
        try:
            return importlib.import_module(wheel)
        except ModuleNotFoundError:
            continue
        except ImportError as error:  # the wheel is there, a library below it is not
            reasons.append(f"{wheel}: {error}")
    raise ConfigError("; ".join(reasons) or "nixl is not installed (pip install 'penstock[nixl]')")


def _check_range(blocks: npt.NDArray[np.integer[Any]], num_blocks: int, owner: str) -> None:
    if blocks.size and (blocks.min() < 0 or blocks.max() >= num_blocks):
        raise TransferError(f"{owner} has blocks 0 to {num_blocks - 1}, not {blocks.min()} to {blocks.max()}")
