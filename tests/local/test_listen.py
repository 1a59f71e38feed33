"""Ports that nobody else gets by chance."""

import itertools
import socket

import pytest

from penstock import listen


def test_no_port_is_given_twice_and_all_can_be_had() -> None:
    ports = [listen.free_port() for _ in range(200)]
    assert len(set(ports)) == 200
    assert all(20_000 <= port < 30_000 for port in ports), "the kernel gives none of these away"
    for port in ports:
        listen.bind("127.0.0.1", port).close()


def test_a_port_that_somebody_listens_on_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    free = listen.free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(listen, "_candidates", itertools.cycle([taken.getsockname()[1], free]))
        assert [listen.free_port() for _ in range(2)] == [free, free]
