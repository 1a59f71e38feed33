"""Takes an address before anything expensive starts, so that a taken port is the first thing one hears of."""

import itertools
import random
import socket
from contextlib import suppress

from penstock.errors import ConfigError

_PORTS = range(20_000, 30_000)
"""The kernel gives none of them to who asks for any, or calls others: nobody has one by chance before it is used."""
_candidates = itertools.cycle(random.sample(_PORTS, len(_PORTS)))


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. Raises ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; choose another --host or --port") from error
    return listener


def free_port() -> int:
    """A port of the loopback address that nothing listens on now; another one each time. Raises ConfigError."""
    for port in itertools.islice(_candidates, len(_PORTS)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise ConfigError(f"no port of 127.0.0.1 from {_PORTS.start} to {_PORTS.stop - 1} is free")
