"""What the next step computes: a pure function of the sequences and the pool, shared by engine and simulator.

Decoding sequences come first, then prompts that were begun, then new ones, all within one token budget (chunked
prefill: Agrawal et al. 2023, "SARATHI"). A prompt is admitted only when all of its blocks fit, so a prompt that was
begun never waits for memory; sequences that grow may preempt later ones, which recompute (Kwon et al. 2023, 4.5).
"""

from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
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
    plan = Plan()
    free = pool.num_free
    given_up: Counter[int] = Counter()
    tokens = budget.max_step_tokens
    queue = sorted(running, key=lambda sequence: (sequence.num_pending > 1, sequence.request.rank))
    while queue and tokens > 0:
        sequence = queue.pop(0)
        rows = min(sequence.num_pending, tokens)
        need = _growth(sequence, rows, pool, budget.block_size)
        while need > free and (victim := _victim(queue, sequence)) is not None:
            plan.preempt.append(victim)
            given_up.update(victim.blocks)
            free += sum(given_up[block] == pool.refs(block) for block in victim.blocks)
            if victim is sequence:
                break
            queue.remove(victim)
        if need > free or (plan.preempt and plan.preempt[-1] is sequence):
            continue
        free -= need
        tokens -= rows
        plan.work.append((sequence, rows))
    if not plan.preempt:
        num_running = num_pulling + sum(sequence.request.width for sequence in running)
        _admit(plan, waiting, pool, budget, free=free, tokens=tokens, num_running=num_running)
    return plan


def _admit(
    plan: Plan, waiting: Seq[Sequence], pool: PoolView, budget: Budget, *, free: int, tokens: int, num_running: int
) -> None:
    """Admits waiting sequences in order until one does not fit; that one blocks the others, so that none starves.

    One whose next block another sequence is just computing or pulling waits for that instead of computing it twice.
    """
    expected: set[bytes] = set()
    for sequence in waiting:
        request = sequence.request
        pull = request.role is Role.PULL
        if pull and not request.tickets:
            continue  # waits for its prefill worker, not for us
        width = request.width
        if num_running + width > max(budget.max_sequences, width) or (tokens <= 0 and not pull):
            return
        # A sequence computed here needs the logits of its last token, so that token is never taken from a cache.
        usable = request.num_start_tokens if pull else sequence.num_tokens - 1
        hashes = sequence.full_hashes()[: usable // budget.block_size] if budget.prefix_cache else []
        matched = pool.match(hashes, request.as_of)
        following = next(iter(hashes[len(matched) :]), None)
        if not pull and following is not None and (following in expected or pool.is_expected(following)):
            continue
        need = num_blocks_for(usable + 1, budget.block_size) - len(matched)
        if need + pool.num_unheld(matched) > free:
            return
        free -= need + pool.num_unheld(matched)
        num_running += width
        if budget.prefix_cache:
            expected.update(sequence.full_hashes()[len(matched) :])
        if pull or (request.source is not None and len(matched) < len(hashes)):
            plan.pull.append((sequence, matched))
            continue
        plan.admit.append((sequence, matched))
        rows = min(sequence.num_tokens - len(matched) * budget.block_size, tokens)
        tokens -= rows
        plan.work.append((sequence, rows))


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
