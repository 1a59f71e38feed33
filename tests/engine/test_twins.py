"""Requests with one beginning that are there at the same time: it is computed once, and kept for those who wait."""

from penstock.engine.engine import Engine
from penstock.engine.kv.pool import BlockPool
from penstock.engine.scheduler import Budget, schedule
from penstock.engine.sequence import Role
from penstock.protocol import Accepted
from tests.engine.harness import GENERATION, Answer, collect, make_engine, prompt, request, run
from tests.engine.pair import Pair
from tests.engine.test_scheduler import SIZE, decoding, sequence

PROMPT = prompt(45)
FULL = 40
"""Tokens in its full blocks of 8."""


def cached(answer: Answer) -> int:
    assert answer.done is not None
    return answer.done.cached_tokens


def assert_nothing_is_awaited(engine: Engine) -> None:
    assert engine.pool._expected == engine.pool._wanted == engine.pool._kept == {}
    assert engine.pool.num_held == 0


def test_three_at_once_compute_their_prompt_once() -> None:
    alone = run(make_engine(), request("a", PROMPT))["a"]
    engine = make_engine()
    answers = run(engine, *(request(name, PROMPT) for name in "abc"))
    assert [cached(answers[name]) for name in "abc"] == [0, FULL, FULL]
    assert all(answers[name].tokens == alone.tokens for name in "abc")
    assert engine.num_prompt_tokens == 45 + 2 * 5
    assert_nothing_is_awaited(engine)


def test_one_that_comes_in_the_middle_of_a_long_prompt_waits_for_what_both_share() -> None:
    engine = make_engine(max_step_tokens=8)
    engine.add(request("long", prompt(200)))
    engine.step()
    engine.add(request("short", prompt(200)[:36] + prompt(9, seed=5), max_tokens=2))
    while not collect_done(engine, "short"):
        assert engine.step()
    assert engine.num_cached_tokens == 32
    assert engine.requests.keys() == {"long"}, "it did not wait for the rest"
    engine.cancel("long")
    assert_nothing_is_awaited(engine)


def collect_done(engine: Engine, name: str) -> bool:
    answer = collect(engine).get(name)
    return answer is not None and answer.done is not None


def test_the_next_one_computes_what_a_cancelled_one_had_begun() -> None:
    engine = make_engine(max_step_tokens=16)
    for name in "abc":
        engine.add(request(name, PROMPT))
    engine.step()
    engine.cancel("a")
    while engine.step():
        pass
    answers = collect(engine)
    assert [cached(answers[name]) for name in "bc"] == [16, FULL]
    assert_nothing_is_awaited(engine)


def test_preempted_ones_leave_nobody_waiting() -> None:
    engine = make_engine(num_blocks=12, max_step_tokens=16)
    names = [f"r{index}" for index in range(6)]
    answers = run(engine, *(request(name, prompt(24, seed=index % 2)) for index, name in enumerate(names)))
    assert engine.num_preemptions > 0
    assert all(len(answers[name].tokens[0]) == 12 for name in names)
    assert_nothing_is_awaited(engine)


def test_without_a_prefix_cache_nobody_waits() -> None:
    engine = make_engine(prefix_cache=False)
    answers = run(engine, request("a", PROMPT), request("b", PROMPT))
    assert [cached(answers[name]) for name in "ab"] == [0, 0]
    assert_nothing_is_awaited(engine)


def test_a_prefill_worker_computes_a_shared_prompt_once() -> None:
    engine = make_engine()
    for name in "ab":
        engine.add(request(name, PROMPT), Role.PREFILL)
    while engine.step():
        pass
    assert engine.num_prompt_tokens == 45 + 5
    for name in "ab":
        engine.cancel(name)
    assert_nothing_is_awaited(engine)


def test_one_on_the_decode_worker_alone_waits_for_blocks_that_are_being_pulled() -> None:
    with Pair(prefill=make_engine(max_step_tokens=8)) as pair:
        pulled, alone = request("pulled", PROMPT), request("alone", PROMPT)
        decode = pair.decode.engine

        def admit_the_other(_name: str, _ticket: object) -> bool:
            if "alone" not in decode.requests and pair.decode.redeemer.num_sequences:
                decode.add(alone)
            return True

        pair.on_ticket = admit_the_other
        decode.add(pulled, Role.PULL)
        pair.decode.redeemer.arrived("pulled", Accepted(GENERATION, pair.prefill.peer))
        pair.prefill.engine.add(pulled, Role.PREFILL)
        answers = pair.pump({"pulled", "alone"}).answers
        assert answers["alone"].tokens == answers["pulled"].tokens
        assert cached(answers["alone"]) == FULL
        assert_nothing_is_awaited(decode)


def test_a_plan_admits_one_of_those_that_share_their_next_block() -> None:
    waiting = [sequence(24), sequence(24), sequence(24, seed=1)]
    plan = schedule([], waiting, BlockPool(64), Budget(max_step_tokens=64, max_sequences=8, block_size=SIZE))
    assert [each for each, _ in plan.admit] == [waiting[0], waiting[2]]


def test_those_that_share_nothing_but_a_partial_block_wait_for_nobody() -> None:
    waiting = [sequence(6), sequence(6)]
    plan = schedule([], waiting, BlockPool(64), Budget(max_step_tokens=64, max_sequences=8, block_size=SIZE))
    assert [each for each, _ in plan.admit] == waiting


def test_what_a_waiting_request_will_find_is_evicted_last() -> None:
    engine = make_engine(num_blocks=16, max_sequences=1)
    run(engine, request("old", prompt(33, seed=1), max_tokens=1))
    run(engine, request("new", prompt(33, seed=2), max_tokens=1))
    engine.add(request("long", prompt(60, seed=3), max_tokens=20))  # takes the place of others
    engine.step()
    engine.add(request("again", prompt(33, seed=1), max_tokens=1))
    while engine.step():
        pass
    assert cached(collect(engine)["again"]) == 32


def test_commits_and_losses_end_expectations() -> None:
    pool = BlockPool(8)
    decoding(pool, 8)
    first = sequence(24)
    names = first.full_hashes()
    pool.expect(names)
    pool.expect(names)
    pool.commit(pool.allocate(1)[0], first.stored_block(0))
    pool.give_up(names)
    assert [pool.is_expected(name) for name in names] == [False, True, True]
    pool.give_up(names)
    assert not any(map(pool.is_expected, names))
