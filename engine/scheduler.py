"""What the next step computes: a pure function of the sequences and the pool, shared by engine and simulator.

Decoding sequences come first, then prompts that were begun, then new ones, all within one token budget (chunked
prefill: Agrawal et al. 2023, "SARATHI"); but a new prompt goes before the rest of one of lower rank. A prompt is
admitted only when all of its blocks fit, so a prompt that was begun never waits for memory; sequences that grow may
preempt later ones, which recompute (Kwon et al. 2023, 4.5).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

from penstock.engine.kv.pool import num_blocks_for
from penstock.engine.sequence import Role, Sequence


class PoolView(Protocol):
    """What the scheduler reads of the block pool."""

    @property
    def num_free(self) -> int: ...
    def match(self, hashes: Seq[bytes], as_of: int) -> list[int]: ...
    def is_expected(self, name: bytes) -> bool: ...
    def num_unheld(self, blocks: Seq[int]) -> int: ...
    def refs(self, block: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one step."""

    max_step_tokens: int
    max_sequences: int
    block_size: int
    prefix_cache: bool = True


@dataclass(slots=True)
class Plan:
    """One step: first `preempt`, then `admit` and `pull`, then compute `work`."""

    preempt: list[Sequence] = field(default_factory=list)
    admit: list[tuple[Sequence, list[int]]] = field(default_factory=list)
    """Sequences that leave the waiting list, with the cached blocks that they start from."""
    pull: list[tuple[Sequence, list[int]]] = field(default_factory=list)
    """As `admit`, for sequences that first read KV from another worker."""
    work: list[tuple[Sequence, int]] = field(default_factory=list)
    """Sequences and how many of their next tokens to compute."""


def schedule(
    running: Seq[Sequence], waiting: Seq[Sequence], pool: PoolView, budget: Budget, *, num_pulling: int = 0
) -> Plan:
    """Plans one step. `running` hold their blocks; `waiting` are in order of rank and hold none.

    `num_pulling` sequences hold blocks too and will join `running` when their KV has arrived.
    """
    num_running = num_pulling + sum(sequence.request.width for sequence in running)
    step = _Step(pool, budget, pool.num_free, budget.max_step_tokens, num_running)
    plan = step.plan
    given_up: Counter[int] = Counter()
    queue = sorted(running, key=lambda sequence: (sequence.num_pending > 1, sequence.request.rank))
    while queue and step.tokens > 0:
        sequence = queue.pop(0)
        if sequence.num_pending > 1 and not plan.preempt:
            step.admit(_more_urgent(waiting, sequence))
            if not step.tokens:
                break
        rows = min(sequence.num_pending, step.tokens)
        need = _growth(sequence, rows, pool, budget.block_size)
        while need > step.free and (victim := _victim(queue, sequence)) is not None:
            plan.preempt.append(victim)
            given_up.update(victim.blocks)
            step.free += sum(given_up[block] == pool.refs(block) for block in victim.blocks)
            if victim is sequence:
                break
            queue.remove(victim)
        if need > step.free or (plan.preempt and plan.preempt[-1] is sequence):
            continue
        step.free -= need
        step.tokens -= rows
        plan.work.append((sequence, rows))
    if not plan.preempt:
        step.admit(waiting)
    return plan


@dataclass(slots=True)
class _Step:
    """What a step has left, and its plan."""

    pool: PoolView
    budget: Budget
    free: int
    """Blocks."""
    tokens: int
    num_running: int
    plan: Plan = field(default_factory=Plan)
    _admitted: set[int] = field(default_factory=set)
    _expected: set[bytes] = field(default_factory=set)
    """Blocks that those just admitted will compute or pull."""

    def admit(self, waiting: Iterable[Sequence]) -> None:
        """Admits waiting sequences in order until one does not fit; that one blocks the others, so that none starves.

        One whose next block another sequence is just computing or pulling waits for that instead of computing it twice.
        """
        pool, budget = self.pool, self.budget
        for sequence in waiting:
            request = sequence.request
            pull = request.role is Role.PULL
            if id(sequence) in self._admitted or (pull and not request.tickets):
                continue  # the latter waits for its prefill worker, not for us
            width = request.width
            is_full = self.num_running + width > max(budget.max_sequences, width)
            if is_full or (self.tokens <= 0 and not pull):
                return
            # A sequence computed here needs the logits of its last token, so that token is never taken from a cache.
            usable = request.num_start_tokens if pull else sequence.num_tokens - 1
            hashes = sequence.full_hashes()[: usable // budget.block_size] if budget.prefix_cache else []
            matched = pool.match(hashes, request.as_of)
            following = next(iter(hashes[len(matched) :]), None)
            if not pull and following is not None and (following in self._expected or pool.is_expected(following)):
                continue
            need = num_blocks_for(usable + 1, budget.block_size) - len(matched)
            if need + pool.num_unheld(matched) > self.free:
                return
            self.free -= need + pool.num_unheld(matched)
            self.num_running += width
            self._admitted.add(id(sequence))
            if budget.prefix_cache:
                self._expected.update(sequence.full_hashes()[len(matched) :])
            if pull or (request.source is not None and len(matched) < len(hashes)):
                self.plan.pull.append((sequence, matched))
                continue
            self.plan.admit.append((sequence, matched))
            rows = min(sequence.num_tokens - len(matched) * budget.block_size, self.tokens)
            self.tokens -= rows
            self.plan.work.append((sequence, rows))


def _more_urgent(waiting: Seq[Sequence], sequence: Sequence) -> Iterator[Sequence]:
    """Those before which the rest of `sequence`'s prompt is not computed."""
    return takewhile(lambda other: other.request.rank < sequence.request.rank, waiting)


def _growth(sequence: Sequence, rows: int, pool: PoolView, block_size: int) -> int:
    """Blocks that computing `rows` more tokens takes: new ones, and a copy of a shared last block."""
    new = num_blocks_for(sequence.num_computed + rows, block_size) - len(sequence.blocks)
    index = sequence.num_computed // block_size
    copy = index < len(sequence.blocks) and pool.refs(sequence.blocks[index]) > 1
    return max(new, 0) + copy


def _victim(queue: Seq[Sequence], sequence: Sequence) -> Sequence | None:
    """Whom to preempt so that `sequence` can grow: the last in rank, possibly itself; None if all are pinned."""
    candidates = [other for other in (*queue, sequence) if other.request.role is not Role.PREFILL]
    return max(candidates, key=lambda other: other.request.rank, default=None)
