"""The scheduler alone: plans from sequences and a pool, no model."""

import hypothesis.strategies as st
from hypothesis import given, settings

from penstock.engine.kv.pool import BlockPool, num_blocks_for
from penstock.engine.scheduler import Budget, Plan, schedule
from penstock.engine.sequence import Request, Role, Sequence
from penstock.hashing import BlockHasher
from penstock.protocol import Ticket
from tests.engine.harness import GENERATION, prompt, request

SIZE = 8
BUDGET = Budget(max_step_tokens=32, max_sequences=8, block_size=SIZE)


def sequence(length: int, *, seed: int = 0, role: Role = Role.GENERATE, priority: int = 0, n: int = 1) -> Sequence:
    wire = request(f"r{length}-{seed}", prompt(length, seed), priority=priority, n=n)
    return Request.create(wire, role, BlockHasher(b""), SIZE).sequences[0]


def decoding(pool: BlockPool, length: int, *, seed: int = 0, role: Role = Role.GENERATE) -> Sequence:
    """A sequence whose prompt is computed and whose first token was sampled."""
    each = sequence(length, seed=seed, role=role)
    each.blocks = pool.allocate(num_blocks_for(length, SIZE))
    each.num_computed = length
    each.output.append(1)
    each.request.fork()
    return each


def test_decoding_sequences_come_before_prompts() -> None:
    pool = BlockPool(64)
    chunked = sequence(100)
    chunked.blocks = pool.allocate(13)
    late = decoding(pool, 10, seed=1)
    assert schedule([chunked, late], [], pool, BUDGET).work == [(late, 1), (chunked, 31)]


def test_a_prompt_is_cut_at_the_budget_and_the_next_waits() -> None:
    first, second = sequence(20), sequence(40, seed=1)
    plan = schedule([], [first, second], BlockPool(64), BUDGET)
    assert plan.work == [(first, 20), (second, 12)]


def test_a_prompt_that_was_begun_gives_way_to_a_new_one_of_higher_priority_only() -> None:
    pool = BlockPool(64)
    begun, late = sequence(100), decoding(pool, 10, seed=1)
    begun.blocks = pool.allocate(13)
    same, urgent = sequence(8, seed=2), sequence(20, seed=3, priority=-1)
    plan = schedule([begun, late], [urgent, same], pool, BUDGET)
    assert plan.work == [(late, 1), (urgent, 20), (begun, 11)]
    assert plan.admit == [(urgent, [])]
    plan = schedule([begun, late], [sequence(8, seed=4, priority=1)], pool, BUDGET)
    assert plan.work == [(late, 1), (begun, 31)]


def test_only_so_many_later_prompts_of_higher_priority_overtake() -> None:
    """Else one that was begun would never end, nor would an urgent one that waits for the blocks that it computes."""
    pool = BlockPool(64)
    begun = sequence(100, priority=1)
    begun.blocks = pool.allocate(13)
    firsts = []
    for number in range(40):
        later = sequence(32, seed=1 + number)
        plan = schedule([begun], [later], pool, BUDGET)
        firsts.append(plan.work[0][0] is later)
    assert firsts == [True] * 15 + [False] * 25


def test_a_new_prompt_of_higher_priority_takes_no_memory_of_those_that_were_begun() -> None:
    pool = BlockPool(14)
    begun = sequence(100)
    begun.blocks = pool.allocate(13)
    assert schedule([begun], [sequence(9, seed=1, priority=-1)], pool, BUDGET).work == [(begun, 32)]


def test_a_prompt_that_does_not_fit_blocks_those_behind_it() -> None:
    """Else a stream of short prompts would starve a long one."""
    pool = BlockPool(4)
    assert schedule([], [sequence(40), sequence(8, seed=1)], pool, BUDGET).admit == []


def test_pulls_without_tickets_block_nobody() -> None:
    waiting = [sequence(40, role=Role.PULL), sequence(8, seed=1)]
    assert [each for each, _ in schedule([], waiting, BlockPool(64), BUDGET).admit] == waiting[1:]


def test_a_pull_reserves_its_prompt_and_one_more_token_at_once() -> None:
    pull = sequence(16, role=Role.PULL)
    pull.request.tickets.append(Ticket(generation=GENERATION, first_position=0, blocks=()))
    assert schedule([], [pull], BlockPool(2), BUDGET).pull == []
    plan = schedule([], [pull], BlockPool(3), BUDGET)
    assert plan.pull == [(pull, [])]
    assert plan.admit == plan.work == []


def test_a_source_is_asked_once_all_blocks_are_there_and_only_for_what_is_not_cached() -> None:
    pool = BlockPool(8)
    sourced = sequence(17)
    sourced.request.source = "http://there"
    assert schedule([], [sourced], BlockPool(2), BUDGET) == Plan()
    plan = schedule([], [sourced, sequence(8, seed=1)], pool, BUDGET)
    assert plan.pull == [(sourced, [])]
    assert [each for each, _ in plan.work] == [each for each, _ in plan.admit], "it computes nothing meanwhile"
    blocks = pool.allocate(2)
    for index, block in enumerate(blocks):
        pool.commit(block, sourced.stored_block(index))
    pool.free(blocks)
    plan = schedule([], [sourced], pool, BUDGET)
    assert plan == Plan(admit=[(sourced, blocks)], work=[(sourced, 1)])


def test_the_last_token_is_computed_even_when_all_is_cached() -> None:
    pool = BlockPool(8)
    first = sequence(16)
    blocks = pool.allocate(2)
    for index, block in enumerate(blocks):
        pool.commit(block, first.stored_block(index))
    pool.free(blocks)
    plan = schedule([], [sequence(16)], pool, BUDGET)
    assert [(matched, rows) for (_, matched), (_, rows) in zip(plan.admit, plan.work, strict=True)] == [(blocks[:1], 8)]


def test_growth_preempts_the_latest_and_never_a_prefill() -> None:
    pool = BlockPool(6)
    old, prefill, new = decoding(pool, 16), sequence(16, seed=1, role=Role.PREFILL), decoding(pool, 16, seed=2)
    prefill.blocks = pool.allocate(2)
    plan = schedule([old, prefill, new], [], pool, BUDGET)
    assert plan.preempt == [new]
    assert (old, 1) in plan.work
    assert (prefill, 16) in plan.work


def test_room_for_n_samples_is_counted() -> None:
    budget = Budget(max_step_tokens=64, max_sequences=4, block_size=SIZE)
    waiting = [sequence(8, n=3), sequence(8, seed=1, n=2), sequence(8, seed=2)]
    assert [each for each, _ in schedule([], waiting, BlockPool(64), budget).admit] == waiting[:1]


@settings(max_examples=150)
@given(
    num_blocks=st.integers(4, 40),
    lengths=st.lists(st.integers(1, 60), max_size=12),
    grown=st.lists(st.integers(1, 40), max_size=8),
    tokens=st.integers(1, 80),
    priorities=st.lists(st.integers(-1, 1), min_size=12, max_size=12),
)
def test_a_plan_never_exceeds_memory_or_budget(
    num_blocks: int, lengths: list[int], grown: list[int], tokens: int, priorities: list[int]
) -> None:
    pool = BlockPool(num_blocks)
    running = [
        decoding(pool, length, seed=index)
        for index, length in enumerate(grown)
        if num_blocks_for(length, SIZE) <= pool.num_free
    ]
    waiting = [
        sequence(length, seed=100 + index, priority=priority)
        for index, (length, priority) in enumerate(zip(lengths, priorities, strict=False))
    ]
    waiting.sort(key=lambda each: each.request.rank)
    if len(waiting) > 1 and num_blocks_for(waiting[-1].num_tokens, SIZE) <= pool.num_free:
        begun = waiting.pop()  # a prompt, with its blocks
        begun.blocks = pool.allocate(num_blocks_for(begun.num_tokens, SIZE))
        running.append(begun)
    plan = schedule(running, waiting, pool, Budget(tokens, 64, SIZE))
    for victim in plan.preempt:
        pool.free(victim.blocks)
        victim.blocks = []
    for each, matched in plan.admit:
        pool.acquire(matched)
        each.blocks = matched + pool.allocate(num_blocks_for(each.num_tokens, SIZE) - len(matched))
    assert sum(rows for _, rows in plan.work) <= tokens
    for each, rows in plan.work:
        assert each not in plan.preempt
        assert 0 < rows <= each.num_pending
        missing = num_blocks_for(each.num_computed + rows, SIZE) - len(each.blocks)
        assert missing <= pool.num_free
        each.blocks += pool.allocate(max(0, missing))
    if running or any(num_blocks_for(length, SIZE) <= num_blocks for length in lengths[:1]):
        assert plan.work or plan.preempt
