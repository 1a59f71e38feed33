"""The blocks of each sequence: those kept for it while it waits, expected of it, held by it and committed by it.

Engine and simulator keep these books with the same code. Knows no tensors: who copies or reads blocks does it beside.
"""

from penstock.engine.kv.pool import BlockPool, num_blocks_for
from penstock.engine.sequence import Sequence


class Ledger:
    """Of all sequences whose blocks are in `pool`."""

    def __init__(self, pool: BlockPool, block_size: int, *, prefix_cache: bool = True) -> None:
        self._pool = pool
        self._block_size = block_size
        self._prefix_cache = prefix_cache

    def want(self, sequence: Sequence) -> None:
        """It begins to wait: what is cached for it is evicted last."""
        if self._prefix_cache:
            hashes = sequence.full_hashes()
            self._pool.want(hashes, sequence.request.as_of)
            sequence.num_wanted = len(hashes)

    def unwant(self, sequence: Sequence) -> None:
        """It waits no more."""
        self._pool.unwant(sequence.hashes[: sequence.num_wanted])
        sequence.num_wanted = 0

    def reserve(self, sequence: Sequence, matched: list[int], num_tokens: int) -> list[int]:
        """Blocks for its first `num_tokens` tokens: the `matched` ones, which are already referenced, and new ones.
        From now on others may wait for what it will compute or pull."""
        hashes = sequence.full_hashes() if self._prefix_cache else []
        self._pool.expect(hashes[len(matched) :])
        sequence.num_expected = len(hashes)
        return matched + self._pool.allocate(num_blocks_for(num_tokens, self._block_size) - len(matched))

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Gives it the blocks that it lacks for its first `num_tokens` tokens."""
        missing = num_blocks_for(num_tokens, self._block_size) - len(sequence.blocks)
        if missing > 0:
            sequence.blocks += self._pool.allocate(missing)

    def commit(self, sequence: Sequence) -> None:
        """Hands the full blocks that were computed since the last call to the prefix cache."""
        full = sequence.num_computed // self._block_size
        if self._prefix_cache:
            for index in range(sequence.num_committed, full):
                self._pool.commit(sequence.blocks[index], sequence.stored_block(index))
        sequence.num_committed = max(full, sequence.num_committed)

    def free(self, sequence: Sequence) -> None:
        """It holds nothing any more: what it had computed it would compute again."""
        self._pool.free(sequence.blocks)
        self.give_up(sequence)
        sequence.blocks = []
        sequence.num_computed = sequence.num_committed = 0

    def give_up(self, sequence: Sequence) -> None:
        """Nobody need wait for what it has not computed or pulled."""
        self._pool.give_up(sequence.hashes[sequence.num_committed : sequence.num_expected])
        sequence.num_expected = 0
