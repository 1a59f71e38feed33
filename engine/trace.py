"""When things happened to a request, one line each: for benchmarks that measure across processes of one host."""

import time
from collections.abc import Callable
from typing import TypeAlias

Trace: TypeAlias = Callable[[str, str], None]
"""`trace(event, request_id)`."""


def open_trace(path: str) -> Trace:
    """Appends `<CLOCK_MONOTONIC in ns> <event> <request id>` to the file `path`; does nothing for an empty path."""
    if not path:
        return lambda _event, _request_id: None
    file = open(path, "a", buffering=1)  # noqa: SIM115 - open as long as the process lives

    def trace(event: str, request_id: str) -> None:
        file.write(f"{time.monotonic_ns()} {event} {request_id}\n")

    return trace
