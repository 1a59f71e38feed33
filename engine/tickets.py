"""The prefill side of a transfer: tickets for blocks that are written and retired, and holds for `/blocks`.

A ticket names a block, its epoch and its hash (docs/explanation: the fence). Ticketed blocks stay referenced by their
sequence, or by the hold, until the lease ends, so their bytes cannot change before the epoch does.
"""

from collections.abc import Sequence as Seq

from penstock.engine.kv.pool import BlockPool
from penstock.engine.sequence import Sequence
from penstock.protocol import BlockTicket, FirstToken, Ticket


class Tickets:
    """Publishes tickets of one worker."""

    def __init__(self, pool: BlockPool, generation: str) -> None:
        self._pool = pool
        self._generation = generation
        self._held: dict[str, list[int]] = {}

    def publish(self, sequence: Sequence) -> Ticket:
        """A ticket for the full blocks of `sequence` that were computed since the last one."""
        return self._publish(sequence, sequence.num_computed // sequence.request.block_size)

    def publish_last(self, sequence: Sequence, first_tokens: Seq[FirstToken]) -> Ticket:
        """The last ticket: all blocks left, the partial one included, and the first token of every sample."""
        ended = all(first.finish_reason for first in first_tokens)
        request = sequence.request
        return self._publish(
            sequence,
            request.ticketed_blocks if ended else len(sequence.blocks),
            last=True,
            cached_tokens=request.cached_tokens or 0,
            first_tokens=tuple(first_tokens),
        )

    def lookup(self, request_id: str, hashes: Seq[bytes], as_of: int = 0) -> Ticket:
        """A ticket for the longest cached run of `hashes` as of so many evictions, held until `end_lookup`."""
        blocks = self._pool.match(hashes, as_of)
        self._pool.acquire(blocks)
        self._held[request_id] = blocks
        tickets = tuple(self._ticket(block, block_hash) for block, block_hash in zip(blocks, hashes, strict=False))
        return Ticket(generation=self._generation, first_position=0, blocks=tickets, last=True)

    def end_lookup(self, request_id: str) -> None:
        """Ends a hold. Unknown ids are ignored."""
        self._pool.free(self._held.pop(request_id, []))

    def _publish(self, sequence: Sequence, stop: int, **last: object) -> Ticket:
        start = sequence.request.ticketed_blocks
        sequence.request.ticketed_blocks = stop
        tickets = tuple(self._ticket(sequence.blocks[i], sequence.hash_of(i)) for i in range(start, stop))
        return Ticket(generation=self._generation, first_position=start, blocks=tickets, **last)  # type: ignore[arg-type]

    def _ticket(self, block: int, block_hash: bytes) -> BlockTicket:
        return BlockTicket(block, int(self._pool.epochs[block]), block_hash)
