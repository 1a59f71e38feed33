"""One request on its way through one or two workers, and what passes between those and the router."""

from dataclasses import dataclass
from typing import Protocol

from penstock.engine.kv.pool import BlockPool
from penstock.engine.sequence import Role
from penstock.protocol import Load, StepTiming, StoredBlock
from penstock.simulator.links import Port
from penstock.simulator.sequence import SimulatedSequence
from penstock.simulator.trace import TraceRequest


@dataclass(slots=True)
class Report:
    """What a worker says on its `/events` stream."""

    stored: tuple[StoredBlock, ...]
    removed: tuple[bytes, ...]
    load: Load
    timings: tuple[StepTiming, ...]


class Caller(Protocol):
    """The router's side of a call."""

    def first_token(self, cached_tokens: int) -> None:
        """The prompt is computed; `cached_tokens` of it were found in the cache of the worker that did."""

    def produced(self, count: int) -> None:
        """`count` further tokens."""

    def finished(self) -> None: ...

    def lost(self, worker: "Node") -> None:
        """`worker` is gone, and with it this call."""


class Node(Protocol):
    """A worker, as others see it."""

    url: str
    up: bool
    pool: BlockPool
    port: Port

    def generate(self, call: "Call") -> None: ...
    def prefill(self, call: "Call") -> None: ...
    def ticket(self, call: "Call", tokens: int, last: bool) -> None: ...
    def release(self, call: "Call") -> None: ...
    def abandon(self, call: "Call") -> None: ...


@dataclass(slots=True, eq=False)
class Call:
    """One request on its way through a decode worker and perhaps a prefill worker."""

    trace: TraceRequest
    start_tokens: int
    """Prompt, and on a resume the output so far."""
    caller: Caller
    decode: Node
    prefill: Node | None = None
    source: Node | None = None
    """Whose cached KV the computing worker reads first."""
    on_decode: SimulatedSequence | None = None
    on_prefill: SimulatedSequence | None = None
    cached_tokens: int = 0
    ticketed: int = 0
    """Tokens of KV that the prefill worker has published."""
    submitted: int = 0
    """Of these, how many were read or are being read."""
    reads: int = 0
    """Under way."""
    pulls: int = 0
    """Times that reading began with nothing being read."""
    pulled_tokens: int = 0
    pull_s: float = 0.0
    """In which something was being read."""
    reading_since_s: float = 0.0
    first_sent: bool = False
    over: bool = False

    @property
    def has_joined(self) -> bool:
        """The decode worker has all KV of the prompt: it needs nobody else any more."""
        return self.on_decode is not None and self.on_decode.request.role is Role.GENERATE
