"""The engine's sequence with lengths instead of tokens: a `range` is as long as a list, and needs no memory."""

from typing import cast

from penstock.engine.sequence import Request, Role, Sequence
from penstock.hashing import BlockHasher
from penstock.protocol import GenerateRequest, Sample, SamplingParams, StoredBlock
from penstock.simulator.trace import TraceRequest

_WIRE = GenerateRequest(
    request_id="", prompt=(0,), sampling=SamplingParams(max_tokens=1), samples=(Sample(index=0, seed=0),)
)
_HASHER = BlockHasher(b"")


class SimulatedSequence(Sequence):
    """One answer that is computed from `start_tokens` (the prompt, and on a resume the output so far) to `stop_tokens`.

    What is generated has hashes of its own: a trace does not say which later prompt repeats it.
    """

    __slots__ = ("_num_tokens", "stop_tokens", "trace")

    def __init__(self, trace: TraceRequest, role: Role, block_tokens: int, start_tokens: int) -> None:
        request = Request(_WIRE, role, _HASHER, block_tokens, prompt=_tokens(start_tokens))
        super().__init__(request, _WIRE.samples[0], _tokens(0), hashes=list(trace.hashes))
        request.sequences.append(self)
        self.trace = trace
        self._num_tokens = start_tokens
        self.stop_tokens = trace.prompt_tokens + trace.output_tokens

    @property
    def num_tokens(self) -> int:
        """Kept, not counted as in the engine: it is asked for in every step."""
        return self._num_tokens

    @property
    def num_left(self) -> int:
        """Output tokens to come."""
        return self.stop_tokens - self.num_tokens

    def grow(self, count: int) -> None:
        """`count` tokens were sampled."""
        self.output = _tokens(len(self.output) + count)
        self._num_tokens += count

    def stored_block(self, index: int) -> StoredBlock:
        return StoredBlock(self.hash_of(index), b"", ())

    def _hash(self, index: int) -> bytes:
        return b"%d+%d" % (self.trace.index, index)


def _tokens(count: int) -> list[int]:
    return cast("list[int]", range(count))
