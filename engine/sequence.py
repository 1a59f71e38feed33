"""The nouns of the engine: a request, and the sequences (its samples) that compute it."""

import itertools
from dataclasses import dataclass, field
from enum import Enum, auto

from penstock.hashing import BlockHasher
from penstock.protocol import FinishReason, GenerateRequest, Sample, StoredBlock, Ticket

_arrivals = itertools.count()
_numbers = itertools.count()
_ARRIVALS_PER_LEVEL = 16
"""What a level of priority is worth: so many later requests may overtake one, whatever comes."""


class Role(Enum):
    """What this worker does for a request."""

    GENERATE = auto()
    """Compute the prompt and generate."""
    PULL = auto()
    """Pull the prompt's KV by tickets, then generate."""
    PREFILL = auto()
    """Compute the prompt, publish tickets, hold the blocks for the lease."""


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample: its tokens, the blocks that hold their KV, and how far both agree."""

    request: "Request"
    sample: Sample
    output: list[int]
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    """Chained hashes of the full blocks of its tokens, as far as they were asked for."""
    num_computed: int = 0
    """Tokens whose KV is in `blocks`."""
    num_committed: int = 0
    """Full blocks that were handed to the prefix cache."""
    num_wanted: int = 0
    """Full blocks that are kept for it while it waits."""
    num_expected: int = 0
    """Full blocks that others may wait for, since this sequence computes or pulls them."""
    finish_reason: FinishReason | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    """Unique in this process."""

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.request.prompt) + len(self.output)

    @property
    def num_pending(self) -> int:
        """Tokens still to be computed before the next one can be sampled."""
        return self.num_tokens - self.num_computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of positions `start` to `stop`."""
        num_prompt = len(self.request.prompt)
        if stop <= num_prompt:
            return self.request.prompt[start:stop]
        return self.request.prompt[start:] + self.output[max(0, start - num_prompt) : stop - num_prompt]

    def full_hashes(self) -> list[bytes]:
        """Hashes of all full blocks, hashing only what is new."""
        size = self.request.block_size
        for index in range(len(self.hashes), self.num_tokens // size):
            self.hashes.append(self._hash(index))
        return self.hashes

    def hash_of(self, index: int) -> bytes:
        """The hash of block `index`, full or partial."""
        hashes = self.full_hashes()
        return hashes[index] if index < len(hashes) else self._hash(index)

    def stored_block(self, index: int) -> StoredBlock:
        """Full block `index` as the prefix cache names it."""
        size = self.request.block_size
        parent, salt = (self.hash_of(index - 1), None) if index else (self.request.hasher.root, self.request.wire.salt)
        return StoredBlock(self.hash_of(index), parent, tuple(self.tokens(index * size, (index + 1) * size)), salt)

    def _hash(self, index: int) -> bytes:
        size = self.request.block_size
        parent = self.hashes[index - 1] if index else self.request.hasher.root
        return self.request.hasher.hash_block(
            parent, self.tokens(index * size, min((index + 1) * size, self.num_tokens))
        )


@dataclass(eq=False, slots=True)
class Request:
    """A call to `/generate` or `/prefill`: one sequence computes the prompt, then `n` generate."""

    wire: GenerateRequest
    role: Role
    hasher: BlockHasher
    block_size: int
    prompt: list[int] = field(default_factory=list)
    stop_ids: frozenset[int] = frozenset()
    sequences: list[Sequence] = field(default_factory=list)
    arrival: int = field(default_factory=lambda: next(_arrivals))
    cached_tokens: int | None = None
    """Prompt tokens found in a prefix cache when this request was first admitted."""
    prefilled_tokens: int = 0
    """Prompt tokens that the prefill worker computed."""
    ticketed_blocks: int = 0
    """PREFILL: blocks of the prompt published so far."""
    leased: bool = False
    """PREFILL: the last ticket is out; the blocks wait to be read."""
    tickets: list[Ticket] = field(default_factory=list)
    """PULL: all tickets so far."""
    source: str | None = None
    """GENERATE, PREFILL: the worker to ask for cached blocks when this request is first admitted. None from then on: a
    sample that is preempted while others of its request run recomputes what it lost."""
    as_of: int = 0
    """GENERATE, PREFILL: whoever sent it knew of so many evictions here, and counts on what was evicted later."""
    pulled_blocks: int = 0
    pulls: int = 0
    """Times that reading began with none being read."""
    pull_s: float = 0.0
    """Seconds in which blocks were being read."""
    sourced_blocks: int = 0
    traced: bool = False
    queued_at: float = 0.0
    """When it last began to wait for room, by time.monotonic."""

    @classmethod
    def create(cls, wire: GenerateRequest, role: Role, hasher: BlockHasher, block_size: int) -> "Request":
        """The request with its first sequence; further samples fork from it once the prompt is computed."""
        request = cls(wire=wire, role=role, hasher=hasher, block_size=block_size, prompt=list(wire.prompt))
        request.stop_ids = frozenset(wire.sampling.stop_token_ids)
        if role is not Role.PULL:
            request.source, request.as_of = wire.source, wire.as_of
        first = wire.samples[0]
        request.sequences.append(Sequence(request, first, list(first.output)))
        return request

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller is served first and preempted last: the order of arrival, moved by priority."""
        return self.arrival + _ARRIVALS_PER_LEVEL * self.wire.priority, self.arrival

    @property
    def num_start_tokens(self) -> int:
        """Tokens that exist when the request arrives: the prompt, and the output that a resume brings."""
        return len(self.prompt) + len(self.wire.samples[0].output)

    @property
    def forked(self) -> bool:
        """Whether every sample has its sequence."""
        return len(self.sequences) == len(self.wire.samples)

    @property
    def width(self) -> int:
        """Sequences of the batch that one of this request's stands for: all samples until they fork or join."""
        if self.role is Role.PREFILL or (self.forked and self.role is not Role.PULL):
            return 1
        return len(self.wire.samples)

    @property
    def finished(self) -> bool:
        """Whether every sample ended."""
        return self.forked and all(sequence.finish_reason for sequence in self.sequences)

    def fork(self) -> None:
        """Gives every further sample a sequence that shares the first one's blocks (the caller references them)."""
        first = self.sequences[0]
        assert len(self.sequences) == 1
        for sample in self.wire.samples[1:]:
            self.sequences.append(
                Sequence(
                    self,
                    sample,
                    list(first.output),
                    blocks=list(first.blocks),
                    hashes=list(first.hashes),
                    num_computed=first.num_computed,
                    num_committed=first.num_committed,
                )
            )
