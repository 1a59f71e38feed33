"""The reading side of simulated transfers, as engine/redeem.py: from the prefill worker what it publishes, as it does,
and from a source what it has cached. The time is the links'.
"""

from typing import Protocol

from penstock.engine.kv.pool import BlockPool
from penstock.engine.sequence import Role
from penstock.simulator.call import Call
from penstock.simulator.clock import Clock
from penstock.simulator.kinds import WorkerKind
from penstock.simulator.links import Port, transfer
from penstock.simulator.sequence import SimulatedSequence
from penstock.simulator.trace import BLOCK_TOKENS


class Reader(Protocol):
    """The worker that reads."""

    kind: WorkerKind
    port: Port
    pool: BlockPool

    def run(self, sequence: SimulatedSequence, num_cached: int) -> None: ...
    def join(self, sequence: SimulatedSequence) -> None: ...
    def wake(self) -> None: ...


class Pulls:
    """Of one worker in one of its lives. The blocks are reserved before anything is read."""

    def __init__(self, reader: Reader, clock: Clock, hop_s: float) -> None:
        self._reader = reader
        self._clock = clock
        self._hop_s = hop_s
        self._sequences: set[SimulatedSequence] = set()

    @property
    def num_sequences(self) -> int:
        """Those that will run or join when all is read."""
        return len(self._sequences)

    def begin(self, call: Call, sequence: SimulatedSequence, num_matched: int) -> None:
        """`sequence` has its blocks; all but the first `num_matched` are to be read."""
        self._sequences.add(sequence)
        sequence.num_committed = num_matched
        if sequence.request.role is Role.PULL:
            call.submitted = num_matched * BLOCK_TOKENS
            self.read(call)
        else:
            self._clock.after(self._hop_s, lambda: self._read_source(call, sequence, num_matched))

    def drop(self, sequence: SimulatedSequence) -> None:
        """It is given up, or was never here."""
        self._sequences.discard(sequence)

    def read(self, call: Call) -> None:
        """Reads what is published and not here, and lets the sequence join when that was all."""
        tokens = call.ticketed - call.submitted
        if tokens > 0:
            assert call.prefill is not None
            call.submitted = call.ticketed
            if call.reads == 0:
                call.reading_since_s = self._clock.now_s
                call.pulls += 1
            call.reads += 1
            call.pulled_tokens += tokens
            num_bytes = tokens * self._reader.kind.kv_token_bytes
            transfer(self._clock, call.prefill.port, self._reader.port, num_bytes, lambda: self._verified(call))
        elif call.first_sent and call.reads == 0:
            self._join(call)

    def _verified(self, call: Call) -> None:
        call.reads -= 1
        if call.reads == 0:
            call.pull_s += self._clock.now_s - call.reading_since_s
            if call.first_sent and call.submitted >= call.ticketed and not call.over:
                self._join(call)

    def _join(self, call: Call) -> None:
        sequence = call.on_decode
        if sequence in self._sequences:
            self._sequences.remove(sequence)
            self._reader.join(sequence)

    def _read_source(self, call: Call, sequence: SimulatedSequence, own: int) -> None:
        """A source that dies meanwhile has given nothing: the rest is computed."""
        source = call.source
        assert source is not None
        hashes = sequence.full_hashes()[: (sequence.num_tokens - 1) // BLOCK_TOKENS]
        pool = source.pool
        theirs = pool.match(hashes)[own:] if source.up else []
        pool.acquire(theirs)

        def arrived() -> None:
            pool.free(theirs)
            if call.over or sequence not in self._sequences:
                return
            self._sequences.remove(sequence)
            found = own + len(theirs) if source.up and source.pool is pool else own
            for index in range(own, found):
                self._reader.pool.commit(sequence.blocks[index], sequence.stored_block(index))
            self._reader.run(sequence, found)
            self._reader.wake()

        num_bytes = len(theirs) * BLOCK_TOKENS * self._reader.kind.kv_token_bytes
        transfer(self._clock, source.port, self._reader.port, num_bytes, arrived)
