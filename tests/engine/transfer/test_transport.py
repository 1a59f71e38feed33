"""What a transport refuses, and which one is chosen."""

import logging
import socket
import struct
import sys
import time

import msgspec
import numpy as np
import pytest
import torch

from penstock.engine.transfer import Regions, make_transport
from penstock.errors import ConfigError, TransferError


@pytest.fixture
def regions() -> Regions:
    return Regions(torch.arange(64, dtype=torch.int32).reshape(8, 8), np.arange(8, dtype=np.uint64))


@pytest.fixture
def without_nixl(monkeypatch: pytest.MonkeyPatch) -> None:
    for wheel in ("nixl_cu12", "nixl_cu13", "nixl"):
        monkeypatch.setitem(sys.modules, wheel, None)


@pytest.mark.usefixtures("without_nixl")
def test_without_nixl_auto_takes_tcp_and_says_why_in_one_line(
    regions: Regions, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        transport = make_transport("auto", regions)
    transport.close()
    assert transport.name == "tcp"
    assert caplog.messages == ["KV moves over plain tcp: nixl is not installed (pip install 'penstock[nixl]')"]


@pytest.mark.usefixtures("without_nixl")
def test_without_nixl_asking_for_it_is_refused_with_the_remedy(regions: Regions) -> None:
    with pytest.raises(ConfigError, match=r"nixl is not installed \(pip install"):
        make_transport("nixl", regions)


@pytest.mark.parametrize("transports", ["rc,self", "^tcp", "shm"])
def test_ucx_without_tcp_is_refused(regions: Regions, monkeypatch: pytest.MonkeyPatch, transports: str) -> None:
    monkeypatch.setenv("UCX_TLS", transports)
    with pytest.raises(ConfigError, match="lacks tcp"):
        make_transport("nixl", regions)


def test_an_unknown_transport_is_refused_with_the_known_ones(regions: Regions) -> None:
    with pytest.raises(ConfigError, match="'rdma' is unknown; choose auto, nixl or tcp"):
        make_transport("rdma", regions)


@pytest.mark.parametrize(
    ("kv", "epochs", "message"),
    [
        (torch.zeros(8, 8).T, np.zeros(8, np.uint64), "not contiguous"),
        (torch.zeros(8, 8), np.zeros(7, np.uint64), r"uint64 \[8\], got uint64 \[7\]"),
        (torch.zeros(8, 8), np.zeros(8, np.int64), r"uint64 \[8\], got int64"),
        (torch.zeros(8, 8), np.zeros(16, np.uint64)[::2], "epochs are not contiguous"),
    ],
)
def test_regions_of_the_wrong_form_are_refused(kv: torch.Tensor, epochs: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regions(kv, epochs)


def test_an_endpoint_of_another_transport_is_refused(regions: Regions) -> None:
    transport = make_transport("tcp", regions)
    with pytest.raises(TransferError, match="peer g: not an endpoint of this transport"):
        transport.connect("g", b"garbage")
    transport.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        struct.pack("<IIQQ", 0, 1, 0, 10**12),
        struct.pack("<IIQQ", 0, 1, 2**63, 8),
        struct.pack("<IIQQ", 2, 1, 0, 8),
        struct.pack("<II", 0, 2**32 - 1),
    ],
    ids=["too long", "far out", "unknown region", "too many ranges"],
)
def test_a_request_out_of_bounds_is_cut_off_and_others_are_served(regions: Regions, request_bytes: bytes) -> None:
    transport = make_transport("tcp", regions)
    _, _, host, port, token = msgspec.msgpack.decode(transport.endpoint)
    for hello in (token, bytes(16)):
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(hello + request_bytes)
            assert received(connection, 1) == b""
    with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(token + struct.pack("<IIQQ", 0, 1, 32, 32))
        assert received(connection, 32) == np.arange(8, 16, dtype=np.int32).tobytes()
    transport.close()


def test_more_scattered_reads_than_both_ways_can_buffer_do_not_block_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tune(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)

    monkeypatch.setattr("penstock.engine.transfer.tcp.tune", tune)
    monkeypatch.setattr("penstock.engine.transfer.tcp_server.tune", tune)
    num_blocks = 2**16
    source = torch.arange(num_blocks * 4, dtype=torch.int32).reshape(num_blocks, 4)
    target = torch.zeros_like(source)
    owner, reader = (make_transport("tcp", Regions(kv, np.zeros(num_blocks, np.uint64))) for kv in (source, target))
    reader.connect("owner", owner.endpoint)
    reads = [reader.read_blocks("owner", [(block, block) for block in range(start, num_blocks, 2)]) for start in (0, 1)]
    give_up = time.monotonic() + 5
    while not all(read.poll() for read in reads) and time.monotonic() < give_up:
        reader.progress()
    reader.close()
    owner.close()
    assert torch.equal(target, source)


def received(connection: socket.socket, num_bytes: int) -> bytes:
    """What the server sends, b"" when it hangs up."""
    try:
        return connection.recv(num_bytes, socket.MSG_WAITALL)
    except ConnectionResetError:
        return b""
