"""The engine by itself: right tokens whatever the batch, the chunks, the cache, the memory; nothing left behind."""

import pytest
import torch

from penstock.engine.engine import Engine
from penstock.engine.scheduler import schedule
from penstock.engine.sequence import Role
from penstock.protocol import Error, Ticket, Tokens
from tests.engine.harness import RecordingRunner, collect, make_engine, prompt, request, run

PROMPT = prompt(45)


def logits_of(engine: Engine, name: str) -> dict[int, torch.Tensor]:
    """Recorded logits of sample 0 of a request, by number of tokens before them."""
    runner = engine.runner
    assert isinstance(runner, RecordingRunner)
    return {length: row for (key, length), row in runner.logits.items() if key == f"{name}.0"}


def assert_same_logits(engine: Engine, other: Engine, name: str = "a") -> None:
    ours, theirs = logits_of(engine, name), logits_of(other, name)
    assert len(ours) >= 12
    assert ours.keys() == theirs.keys()
    for length, row in ours.items():
        assert torch.equal(row, theirs[length]), f"logits after {length} tokens differ"


@pytest.fixture
def reference(dtype: torch.dtype) -> Engine:
    """One request alone, its prompt in one step."""
    engine = make_engine(dtype=dtype)
    answer = run(engine, request("a", PROMPT))["a"]
    assert len(set(answer.tokens[0])) >= 8, "a prompt whose answer repeats itself proves nothing"
    return engine


@pytest.mark.parametrize("step_tokens", [1, 5, 16, 33])
def test_chunk_size_does_not_change_logits(reference: Engine, dtype: torch.dtype, step_tokens: int) -> None:
    engine = make_engine(dtype=dtype, max_step_tokens=step_tokens)
    run(engine, request("a", PROMPT))
    assert_same_logits(engine, reference)


@pytest.mark.parametrize("block_size", [4, 16, 32])
def test_block_size_does_not_change_logits(reference: Engine, dtype: torch.dtype, block_size: int) -> None:
    engine = make_engine(dtype=dtype, block_size=block_size)
    run(engine, request("a", PROMPT))
    assert_same_logits(engine, reference)


def test_batch_mates_do_not_change_logits(reference: Engine, dtype: torch.dtype) -> None:
    engine = make_engine(dtype=dtype, num_blocks=256)
    mates = [request(f"mate{i}", prompt(3 + 11 * i, seed=i + 1), temperature=1.0) for i in range(9)]
    run(engine, *mates[:5], request("a", PROMPT), *mates[5:])
    assert_same_logits(engine, reference)


def test_prefix_hit_does_not_change_logits(reference: Engine, dtype: torch.dtype) -> None:
    engine = make_engine(dtype=dtype)
    run(engine, request("first", PROMPT[:26]))
    answer = run(engine, request("a", PROMPT))["a"]
    assert answer.done is not None
    assert answer.done.cached_tokens == 24
    assert_same_logits(engine, reference)


def test_preemption_does_not_change_logits(reference: Engine, dtype: torch.dtype) -> None:
    engine = make_engine(dtype=dtype, num_blocks=14)
    run(engine, request("mate", prompt(45, seed=3), max_tokens=20), request("a", PROMPT))
    assert engine.num_preemptions > 0
    assert_same_logits(engine, reference)


def test_resume_continues_the_stream_bit_for_bit(dtype: torch.dtype) -> None:
    engine = make_engine(dtype=dtype)
    whole = run(engine, request("whole", PROMPT, temperature=1.0))["whole"].tokens[0]
    resumed = make_engine(dtype=dtype)
    answer = run(resumed, request("rest", PROMPT, output=tuple(whole[:5]), temperature=1.0))["rest"]
    assert answer.tokens[0] == whole[5:]
    first = next(frame for frame in answer.others if isinstance(frame, Tokens))
    assert first.position == 5


def test_a_request_whose_numbers_overflow_ends_alone_and_leaves_nothing_in_the_cache(
    reference: Engine, dtype: torch.dtype
) -> None:
    engine = make_engine(dtype=dtype)
    engine.add(request("broken", prompt(45, seed=3), n=2))
    engine.add(request("a", PROMPT))
    engine.step()
    engine.runner.kv[engine.requests["broken"].sequences[0].blocks[1]] = float("inf")
    [error] = [frame for frame in run(engine)["broken"].others if isinstance(frame, Error)]
    assert "not finite" in error.message
    assert_same_logits(engine, reference)
    assert engine.pool.num_held == 0
    again = run(engine, request("again", prompt(45, seed=3)))["again"]
    assert again.done is not None
    assert again.done.cached_tokens == 0


def test_resume_with_nothing_left_finishes_without_a_step() -> None:
    engine = make_engine()
    answer = run(engine, request("a", PROMPT, output=tuple(range(12))))["a"]
    assert not engine.timings
    assert answer.reasons == {0: "length"}
    assert answer.done is not None


def test_samples_of_one_prompt_equal_samples_of_their_own() -> None:
    engine = make_engine()
    together = run(engine, request("a", PROMPT, n=4, temperature=1.0))["a"]
    assert engine.num_prompt_tokens == len(PROMPT)
    assert len({tuple(tokens) for tokens in together.tokens.values()}) == 4
    for index in range(4):
        alone = run(make_engine(), request("a", PROMPT, seed=7 + index, temperature=1.0))["a"]
        assert together.tokens[index] == alone.tokens[0]


def test_samples_survive_preemption() -> None:
    plenty = run(make_engine(), request("a", PROMPT, n=4, temperature=1.0, max_tokens=24))["a"]
    engine = make_engine(num_blocks=13)
    scarce = run(engine, request("a", PROMPT, n=4, temperature=1.0, max_tokens=24))["a"]
    assert engine.num_preemptions > 0
    assert scarce.tokens == plenty.tokens


@pytest.mark.parametrize("damage", ["zero", "swap", "shift"])
def test_the_comparison_notices_damaged_kv(reference: Engine, dtype: torch.dtype, damage: str) -> None:
    """Keys are cached rotated, so permuting one sequence's blocks changes nothing: the swap is with another's block."""
    engine = make_engine(dtype=dtype)
    engine.add(request("a", PROMPT))
    engine.add(request("mate", prompt(19, seed=9)))
    engine.step()
    kv = engine.runner.kv
    mine, theirs = (sequence.blocks for sequence in engine.running)
    match damage:
        case "zero":
            kv[mine[2]] = 0
        case "swap":
            kv[[mine[1], theirs[1]]] = kv[[theirs[1], mine[1]]]
        case "shift":  # token i answers with the KV of token i - 1
            tokens = kv[mine[:5]].permute(0, 4, 1, 2, 3, 5).flatten(0, 1)
            moved = torch.cat((tokens[:1], tokens[:-1])).unflatten(0, (5, 8))
            kv[mine[:5]] = moved.permute(0, 2, 3, 4, 1, 5)
    while engine.step():
        pass
    with pytest.raises(AssertionError, match="differ"):
        assert_same_logits(engine, reference)


def test_timings_and_load_count_the_work() -> None:
    """What the router fits its costs to."""
    engine = make_engine(max_step_tokens=20)
    engine.add(request("a", PROMPT, max_tokens=3))
    pending = []
    while engine.step():
        pending.append((engine.load().prefill_tokens, engine.load().context_tokens))
    assert [(each.prefill_tokens, each.decode_tokens, each.context_tokens) for each in engine.timings] == [
        (20, 0, 0),
        (20, 0, 0),
        (5, 0, 0),
        (0, 1, 46),
        (0, 1, 47),
    ]
    assert sum(each.prefill_pairs for each in engine.timings) == 45 * 46 // 2
    assert all(each.seconds > 0 for each in engine.timings)
    assert pending == [(25, 0), (5, 0), (0, 45), (0, 46), (0, 0)]
    assert engine.load().evictable_blocks == 5


def test_nothing_is_held_after_the_last_answer() -> None:
    engine = make_engine(num_blocks=40)
    run(engine, *[request(f"r{i}", prompt(10 + 7 * i, seed=i), n=1 + i % 3, temperature=0.8) for i in range(12)])
    load = engine.load()
    assert (load.running, load.waiting, load.leased, load.free_blocks) == (0, 0, 0, 40)
    assert not engine.requests


def test_cancel_frees_at_every_stage() -> None:
    for steps in range(8):
        engine = make_engine(num_blocks=16, max_step_tokens=16)
        engine.add(request("a", PROMPT, n=2))
        engine.add(request("b", prompt(30, seed=2)))
        for _ in range(steps):
            engine.step()
        engine.cancel("a")
        engine.cancel("b")
        assert engine.pool.num_free == 16
        assert not engine.step()


def test_admitting_one_sequence_never_takes_blocks_that_another_was_promised() -> None:
    """A full cache, two admissions in one step: what the first allocates must not be the second one's prefix."""
    shared = prompt(24, seed=1) + prompt(3, seed=9)
    expected = run(make_engine(), request("b", shared, max_tokens=8))["b"].tokens
    engine = make_engine(num_blocks=10)
    for name, tokens in (("warm", shared), ("x", prompt(40, seed=2)), ("y", prompt(24, seed=3))):
        run(engine, request(name, tokens, max_tokens=2))
    assert (
        run(engine, request("a", prompt(40, seed=4), max_tokens=8), request("b", shared, max_tokens=8))["b"].tokens
        == expected
    )


def test_a_step_that_only_preempts_is_not_idle() -> None:
    """Two samples that share all blocks of a full pool: the work goes on without anything new arriving."""
    engine = make_engine(num_blocks=4)
    answer = run(engine, request("a", prompt(28), n=2, max_tokens=4))["a"]
    assert {sample: len(tokens) for sample, tokens in answer.tokens.items()} == {0: 4, 1: 4}


def test_priority_is_served_first() -> None:
    engine = make_engine(num_blocks=8)
    for name, priority in (("late", 1), ("urgent", -1)):
        engine.add(request(name, PROMPT, priority=priority))
    engine.step()
    assert [sequence.request.wire.request_id for sequence in engine.running] == ["urgent"]


def test_salts_share_no_block() -> None:
    engine = make_engine()
    run(engine, request("a", PROMPT, salt="tenant-1"))
    other = run(engine, request("b", PROMPT, salt="tenant-2"))["b"]
    same = run(engine, request("c", PROMPT, salt="tenant-2"))["c"]
    assert other.done is not None
    assert same.done is not None
    assert other.done.cached_tokens == 0
    assert same.done.cached_tokens == 40


def test_stop_tokens_and_limits_end_a_sequence() -> None:
    engine = make_engine()
    tokens = run(engine, request("a", PROMPT))["a"].tokens[0]
    stop = next(token for index, token in enumerate(tokens) if index >= 3 and token not in tokens[:index])
    stopped = run(engine, request("b", PROMPT, stop_token_ids=(stop,)))["b"]
    assert stopped.tokens[0] == tokens[: tokens.index(stop) + 1]
    assert stopped.reasons == {0: "stop"}
    short = run(engine, request("c", PROMPT, max_tokens=2))["c"]
    assert (short.tokens[0], short.reasons) == (tokens[:2], {0: "length"})


def test_prefill_publishes_each_block_once_and_holds_them_until_cancelled() -> None:
    engine = make_engine(max_step_tokens=20, num_blocks=16)
    answer = run(engine, request("a", PROMPT, n=2, temperature=1.0), role=Role.PREFILL)["a"]
    tickets = [frame for frame in answer.others if isinstance(frame, Ticket)]
    assert [ticket.last for ticket in tickets] == [False, False, True]
    assert [ticket.first_position for ticket in tickets] == [0, 2, 5]
    blocks = [block.block for ticket in tickets for block in ticket.blocks]
    assert len(set(blocks)) == len(blocks) == 6
    assert [block.epoch for block in tickets[2].blocks] == [int(engine.pool.epochs[blocks[5]])]
    assert len(tickets[-1].first_tokens) == 2
    assert (engine.load().leased, engine.pool.num_free) == (1, 10)
    engine.cancel("a")
    assert (engine.load().leased, engine.pool.num_free) == (0, 16)


def test_prefill_publishes_its_cached_prefix_before_computing() -> None:
    engine = make_engine()
    run(engine, request("first", PROMPT[:26]))
    engine.add(request("a", PROMPT), Role.PREFILL)
    engine.step()
    tickets = [frame for frame in collect(engine)["a"].others if isinstance(frame, Ticket)]
    assert [len(ticket.blocks) for ticket in tickets] == [3, 3]
    assert tickets[-1].cached_tokens == 24


def test_prefill_with_tickets_out_is_never_preempted() -> None:
    engine = make_engine(num_blocks=13, max_step_tokens=20)
    engine.add(request("decode", prompt(40, seed=5), max_tokens=40))
    engine.step()
    engine.step()
    engine.add(request("a", PROMPT), Role.PREFILL)
    for _ in range(60):
        engine.step()
    assert engine.load().leased == 1
    held = collect(engine)
    assert [frame.last for frame in held["a"].others if isinstance(frame, Ticket)][-1]
    engine.cancel("a")
    while engine.step():
        pass
    assert len(held["decode"].tokens[0]) + len(collect(engine)["decode"].tokens[0]) == 40


def test_lookup_holds_the_cached_run() -> None:
    engine = make_engine(num_blocks=16)
    sequence_hashes = []
    engine.add(request("a", PROMPT))
    sequence_hashes = list(engine.waiting[0].full_hashes())
    while engine.step():
        pass
    ticket = engine.tickets.lookup("look", [*sequence_hashes[:3], b"unknown", *sequence_hashes[4:]])
    assert [block.hash for block in ticket.blocks] == sequence_hashes[:3]
    assert engine.pool.num_held == 3
    engine.cancel("look")
    assert engine.pool.num_held == 0


def test_waste_is_under_four_percent_at_32_sequences() -> None:
    """Only the last block of a sequence is partial: block size 16, lengths log-uniform in 64 to 2,048."""
    generator = torch.Generator().manual_seed(1)
    lengths = [int(64 * 32 ** torch.rand(1, generator=generator).item()) for _ in range(32)]
    engine = make_engine(num_blocks=3000, block_size=16, max_step_tokens=10**6)
    for index, length in enumerate(lengths):
        engine.add(request(f"r{index}", prompt(length, seed=index), max_tokens=2))
    for sequence, matched in schedule(engine.running, engine.waiting, engine.pool, engine.budget).admit:
        engine._admit(sequence, matched)
    used = sum(lengths)
    held = engine.pool.num_held * 16
    assert held >= used
    assert (held - used) / held < 0.04
