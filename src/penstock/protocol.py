"""The wire types of router, prefill and decode workers: requests as JSON bodies, answers as streams of JSON lines.

Workers speak token ids only; text exists on the router's side. A streaming call is owned by its caller: closing the
connection cancels everything behind it. Times on the wire are always durations, never clock readings.
"""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from penstock.errors import reason_of

VERSION = 1

HEARTBEAT_S = 0.2
"""Every open stream carries a frame at least this often (the promise is 0.25 s)."""
SILENT_S = 1.5
"""A peer silent for longer is lost."""
STUCK_S = 5.0
"""A step longer than max(STUCK_S, STUCK_FACTOR * predicted) is stuck."""
STUCK_FACTOR = 4.0

_MAX_MESSAGE = 2000
"""Characters: an error may quote what another worker sent."""
_INT32 = 2**31 - 1
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=_INT32)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
FinishReason: TypeAlias = Literal["stop", "length"]
Pause: TypeAlias = Annotated[float, Meta(ge=0, le=86_400)]


class SamplingParams(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How tokens are chosen and when a sequence ends. Zero `temperature` is greedy."""

    max_tokens: Annotated[int, Meta(ge=1, le=_INT32)]
    min_tokens: Annotated[int, Meta(ge=0, le=_INT32)] = 0
    temperature: Annotated[float, Meta(ge=0)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=_INT32)] = 0
    """0 keeps all tokens."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0)] = 1.0
    logit_bias: dict[TokenId, float] = {}
    stop_token_ids: tuple[TokenId, ...] = ()
    ignore_eos: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=_INT32)] | None = None
    """How many alternatives to report per token; None reports no logprobs, 0 only the chosen token's."""


class Sample(Struct, frozen=True, omit_defaults=True):
    """One of the `n` answers: its index, its seed and, when it resumes, all output ids the router has received."""

    index: Annotated[int, Meta(ge=0, le=_INT32)]
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    output: tuple[TokenId, ...] = ()


class GenerateRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of `/generate` and of `/prefill`.

    A resumed request has exactly one sample; its `output` counts for penalties, limits and stop rules, and only later
    positions are emitted.
    """

    request_id: str
    prompt: Annotated[tuple[TokenId, ...], Meta(min_length=1)]
    sampling: SamplingParams
    samples: Annotated[tuple[Sample, ...], Meta(min_length=1)]
    salt: str = ""
    priority: Annotated[int, Meta(ge=-_INT32, le=_INT32)] = 0
    """Smaller is served first."""
    timeout_s: float = 600.0
    """Seconds that remain of the caller's deadline."""
    prefill: str | None = None
    """Base URL of the prefill worker, or None to compute the prompt where the request lands."""
    source: str | None = None
    """Base URL of any worker that may have the beginning of the tokens cached: whoever computes them reads from there
    what it lacks. Only a hint: a source that is lost, late or has nothing costs time, never the request."""
    as_of: Count = 0
    """`Events.evictions` of whoever computes the prompt, as far as they were known when it was chosen. Blocks evicted
    later count as cached for this request as long as nothing was written over them; 0: whatever was evicted before."""
    source_as_of: Count = 0
    """The same of the source."""


class BlocksRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of `/blocks`: asks for tickets to the longest cached run of these chained block hashes."""

    request_id: str
    hashes: tuple[bytes, ...]
    as_of: Count = 0
    """See GenerateRequest."""


class Layout(Struct, frozen=True, kw_only=True):
    """What two workers must share before blocks may move between them, compared at first contact."""

    protocol: int
    model: str
    weights_version: str
    kv_dtype: str
    groups: tuple[tuple[int, int, int], ...]
    """Per layer group: (layers, kv_heads, head_dim)."""
    block_size: int
    tensor_parallel: int = 1
    hash_key: str = ""
    """Fingerprint of the secret that keys the block hashes."""


class Peer(Struct, frozen=True, kw_only=True):
    """How to reach a worker's KV cache; a new process has a new `generation`."""

    generation: str
    layout: Layout
    endpoints: dict[str, bytes]
    """Per transport name, what `Transport.connect` needs."""
    num_blocks: int


class TokenLogprob(Struct, frozen=True, array_like=True):
    """A chosen token's log-probability and the most likely alternatives, best first."""

    logprob: float
    top: tuple[tuple[TokenId, float], ...] = ()


class BlockTicket(Struct, frozen=True, array_like=True):
    """One block: where it lies on the prefill worker, its epoch when it was written, and its chained hash."""

    block: int
    epoch: int
    hash: bytes


class FirstToken(Struct, frozen=True, omit_defaults=True):
    """The first token of one sample, and why the sequence already ended with it, if it did."""

    token: TokenId
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None


# Frames: one JSON line each.


class Accepted(Struct, frozen=True, tag="accepted", omit_defaults=True):
    """First frame of every stream: the request is valid and queued."""

    generation: str
    peer: Peer | None = None
    """On `/prefill` and `/blocks`: how to read the ticketed blocks."""


class Heartbeat(Struct, frozen=True, tag="heartbeat"):
    """The engine process lives: its step number, seconds in this step, and how long it was predicted to take."""

    step: int
    step_s: float
    predicted_s: float


class Tokens(Struct, frozen=True, tag="tokens", omit_defaults=True):
    """New output tokens of one sample; `position` is the output position of the first of them."""

    sample: int
    position: Count
    tokens: tuple[TokenId, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: Count | None = None
    """On the first tokens of a stream, as in `Done`, which never comes if the router ends the stream."""


class Finished(Struct, frozen=True, tag="finished"):
    """One sample ended: "stop" (its last token is an end or stop token) or "length"."""

    sample: int
    reason: FinishReason


class Done(Struct, frozen=True, tag="done", kw_only=True, omit_defaults=True):
    """Last frame of a good `/generate` stream, after every sample finished."""

    cached_tokens: Count = 0
    """Prompt tokens that nobody had to compute for this request."""
    prefilled_tokens: Count = 0
    """Prompt tokens that the prefill worker computed."""
    pulled_blocks: Count = 0
    pulled_bytes: Count = 0
    pulls: Count = 0
    """Times that reading these blocks began with none being read."""
    pull_s: Annotated[float, Meta(ge=0)] = 0.0
    """Seconds in which they were being read."""
    sourced_blocks: Count = 0
    """Of the pulled blocks, those that were in the cache of the request's `source`."""


class Error(Struct, frozen=True, tag="error", kw_only=True, omit_defaults=True):
    """Last frame of a failed stream. `code` is the `code` of a RetryableError, or "internal"."""

    code: str
    message: str
    retry_after_s: Pause | None = None


class Ticket(Struct, frozen=True, tag="ticket", kw_only=True, omit_defaults=True):
    """Blocks that are written and retired, for consecutive positions; the last one carries the first tokens.

    Only the last block of the last ticket may be partial.
    """

    generation: str
    group: int = 0
    first_position: int
    """Index of the first ticketed block within the sequence (token position / block size)."""
    blocks: tuple[BlockTicket, ...]
    last: bool = False
    cached_tokens: Count = 0
    first_tokens: tuple[FirstToken, ...] = ()
    """On the last ticket: one per sample."""
    aux: bytes = b""


Frame: TypeAlias = Accepted | Heartbeat | Tokens | Finished | Done | Error | Ticket


# The `/events` stream.


class StoredBlock(Struct, frozen=True, array_like=True):
    """A full block entered the prefix cache. Hashes are the worker's own and opaque to others."""

    hash: bytes
    parent: bytes
    tokens: tuple[int, ...]
    salt: str | None = None
    """On the first block of a sequence, the `salt` of the request that it was computed for: all that is mixed into the
    hashes beside tokens and what is the same for every request here. None on all other blocks."""


class Load(Struct, frozen=True, omit_defaults=True):
    """What the worker is doing now."""

    running: int = 0
    waiting: int = 0
    leased: int = 0
    free_blocks: int = 0
    num_blocks: int = 0
    quarantined_blocks: int = 0
    evictable_blocks: int = 0
    """Of the free ones, those that the prefix cache would lose."""
    prefill_tokens: int = 0
    """Prompt tokens to be computed, as far as known: what a waiting prompt will find in the cache is not."""
    context_tokens: int = 0
    """KV tokens of the sequences that decode."""


class StepTiming(Struct, frozen=True, array_like=True):
    """One engine step: rows computed for prompts, rows for decoding, KV tokens that the latter read, seconds."""

    prefill_tokens: int
    decode_tokens: int
    context_tokens: int
    seconds: float
    prefill_pairs: int = 0
    """Query-key pairs in the attention of the prompts' rows."""


def event_blocks(block_size: int) -> int:
    """Most blocks in one frame of `/events`, so that none is longer than about a megabyte."""
    return max(1, min(1024, 65_536 // block_size))


class Events(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One frame of `/events`. A gap in `sequence` or a new `generation` asks for a snapshot (subscribe again)."""

    generation: str
    sequence: int
    snapshot: bool = False
    """`stored` is the whole prefix cache, or a part of it; every subscription begins with a snapshot."""
    part: int = 0
    """Number of this part of the snapshot."""
    more: bool = False
    """Another part of the snapshot follows."""
    block_size: int = 0
    """On snapshots: tokens per block; 0 for a worker that does not reuse blocks."""
    stored: tuple[StoredBlock, ...] = ()
    """Blocks that the cache has and had not at the last frame; parents come before their children."""
    removed: tuple[bytes, ...] = ()
    """Hashes of those that it had and has not; none of them is in `stored`."""
    evictions: Count = 0
    """Blocks that ever left the cache, those included that this frame tells of; 0 where it tells of none."""
    cleared: bool = False
    load: Load | None = None
    timings: tuple[StepTiming, ...] = ()


_encoder = msgspec.json.Encoder()
_frame_decoder = msgspec.json.Decoder(Frame)


def encode_line(frame: Struct) -> bytes:
    """One frame as a JSON line."""
    return _encoder.encode(frame) + b"\n"


def decode_frame(line: bytes) -> Any:
    """The frame of one line. Raises msgspec.DecodeError (ValidationError when the JSON has the wrong form)."""
    return _frame_decoder.decode(line)


def error_frame(error: Exception) -> Error:
    """The last frame of a stream that fails with `error`."""
    return Error(
        code=getattr(error, "code", None) or "internal",
        message=reason_of(error)[:_MAX_MESSAGE],
        retry_after_s=getattr(error, "retry_after_s", None),
    )
