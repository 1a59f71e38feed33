"""What a worker's front process and its engine process say to each other over their pipe.

Both directions are batches of msgspec messages, at most one batch per engine step: never one message per token.
"""

from typing import TypeAlias

from msgspec import Struct, msgpack

from penstock.protocol import Accepted, Done, Error, Events, Finished, GenerateRequest, Load, Peer, Ticket, Tokens

# Front to engine.


class Generate(Struct, frozen=True, tag=True):
    """Answer this request here. With `request.prefill` set, its prompt's KV arrives by tickets (PeerArrived)."""

    request: GenerateRequest
    traced: bool = False
    """Report its Spans."""


class Prefill(Struct, frozen=True, tag=True):
    """Compute this request's prompt, publish tickets, and hold the blocks until Cancel (the end of the lease)."""

    request: GenerateRequest
    traced: bool = False
    """Report its Spans."""


class Lookup(Struct, frozen=True, tag=True):
    """Publish tickets for the longest cached run of these hashes and hold the blocks until Cancel."""

    request_id: str
    hashes: tuple[bytes, ...]
    as_of: int = 0
    """See GenerateRequest."""


class PeerArrived(Struct, frozen=True, tag=True):
    """A frame of the worker that a request's blocks come from: its `prefill`, or else its `source`."""

    request_id: str
    frame: Accepted | Ticket


class PeerFailed(Struct, frozen=True, tag=True):
    """That worker was lost, refused or sent an error: a `prefill` ends the request with `prefill_lost` or
    `prefill_died`, a `source` has the engine compute what it was to give."""

    request_id: str
    reason: str
    died: bool = False
    """Or got stuck, with the request."""


class Cancel(Struct, frozen=True, tag=True):
    """The caller is gone, or a lease ends: free everything of this request. Unknown ids are ignored."""

    request_id: str


class Snapshot(Struct, frozen=True, tag=True):
    """Ask for a snapshot of the prefix cache, for a new subscriber of `/events`."""


class Stop(Struct, frozen=True, tag=True):
    """Leave the process now."""


ToEngine: TypeAlias = Generate | Prefill | Lookup | PeerArrived | PeerFailed | Cancel | Snapshot | Stop

# Engine to front.


class Limits(Struct, frozen=True):
    """What a request must respect on this worker."""

    vocab_size: int
    max_context_tokens: int
    block_size: int
    num_blocks: int
    kind: str = ""
    """Device and number format; see hop.Readiness."""
    model: str = ""
    """Fingerprint of tokenizer and architecture."""


class Started(Struct, frozen=True, tag=True):
    """The engine is ready for requests."""

    peer: Peer
    limits: Limits
    transport: str
    """Name of the KV transport in use, and in `notes` why when it is a fallback."""
    notes: tuple[str, ...] = ()


class StartFailed(Struct, frozen=True, tag=True):
    """The engine cannot serve: what is wrong, as a sentence for the person who started it."""

    message: str


class Beat(Struct, frozen=True, tag=True):
    """Sent by a thread of its own at least every protocol.HEARTBEAT_S."""

    step: int
    step_s: float
    predicted_s: float


class Output(Struct, frozen=True):
    """One frame of one request's stream."""

    request_id: str
    frame: Tokens | Finished | Done | Error | Ticket


class Span(Struct, frozen=True, array_like=True):
    """What a traced request spent time on: durations only, which the front places on its own clock."""

    request_id: str
    name: str
    """`queue`, `prefill_chunk` (of `count` prompt tokens) or `transfer` (of `count` blocks)."""
    seconds: float
    ago_s: float
    """How long before this message it ended."""
    count: int = 0


class Wanted(Struct, frozen=True):
    """The hashes to ask a request's `source` for."""

    request_id: str
    hashes: tuple[bytes, ...]


class Stats(Struct, frozen=True):
    """Counters since start, and what else only /metrics shows."""

    prompt_tokens: int = 0
    """Prompt tokens computed here."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache here."""
    generated_tokens: int = 0
    preemptions: int = 0
    pulled_blocks: int = 0
    pulled_bytes: int = 0
    pull_seconds: float = 0.0
    fenced_pulls: int = 0
    failed_pulls: int = 0
    sourced_blocks: int = 0
    """Of the pulled blocks, those that were in another worker's cache."""
    missed_sources: int = 0
    """Requests whose source was lost, late or had nothing."""
    silent_peers: int = 0
    """Now."""


class StepOutputs(Struct, frozen=True, tag=True):
    """All that one engine step produced."""

    outputs: tuple[Output, ...] = ()
    released: tuple[str, ...] = ()
    """Ids of requests that need their prefill worker or source no more: the front closes its call."""
    events: Events | None = None
    load: Load | None = None
    stats: Stats | None = None
    wanted: tuple[Wanted, ...] = ()
    spans: tuple[Span, ...] = ()


FromEngine: TypeAlias = Started | StartFailed | Beat | StepOutputs

_encoder = msgpack.Encoder()
_to_engine = msgpack.Decoder(tuple[ToEngine, ...])
_from_engine = msgpack.Decoder(FromEngine)


def encode(message: Struct | tuple[Struct, ...]) -> bytes:
    """One pipe message: a tuple of ToEngine messages, or one FromEngine message."""
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> tuple[ToEngine, ...]:
    """What the engine process reads."""
    return _to_engine.decode(data)


def decode_from_engine(data: bytes) -> FromEngine:
    """What the front process reads."""
    message: FromEngine = _from_engine.decode(data)
    return message
