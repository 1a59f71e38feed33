"""What NIXL does not say about the UCX below it: settings that must hold, and where UCX waits for its sockets."""

import os
import select

from penstock.errors import ConfigError


def prepare_environment() -> None:
    """Settles UCX's and NIXL's environment before they are loaded. Raises ConfigError for an unusable UCX_TLS."""
    transports = os.environ.get("UCX_TLS", "all")
    named = set(transports.removeprefix("^").split(","))
    if ("tcp" in named) if transports.startswith("^") else not named & {"tcp", "all"}:
        raise ConfigError(f"UCX_TLS={transports!r} lacks tcp, over which peers connect; add it, or unset UCX_TLS")
    # By default UCX waits in connect(), and with it all that this worker reads and serves: 6 s where a peer is silent.
    os.environ.setdefault("UCX_TCP_CONN_NB", "y")
    # Both log to stdout, which belongs to the worker.
    os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
    os.environ.setdefault("UCX_LOG_FILE", "stderr")


def epoll_descriptors() -> set[int]:
    """The epoll descriptors this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                found.add(int(name))
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return found


def watch(descriptors: set[int]) -> tuple[select.epoll, int]:
    """An epoll over those of UCX's `descriptors` that hold its data sockets, and how many they are.

    Level-triggered, as UCX's own are: no arming is needed. The one that also holds pipes belongs to UCX's helper
    thread, which empties it by itself.
    """
    epoll = select.epoll()
    count = 0
    for descriptor in descriptors:
        if not _holds_pipe(descriptor):
            epoll.register(descriptor, select.EPOLLIN)
            count += 1
    return epoll, count


def _holds_pipe(descriptor: int) -> bool:
    with open(f"/proc/self/fdinfo/{descriptor}") as info:
        targets = [line.split()[1] for line in info if line.startswith("tfd:")]
    return any(_link(target).startswith("pipe:") for target in targets)


def _link(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return ""
