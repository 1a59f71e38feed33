"""Prefill on one engine, decode on another: the same bits as one engine, and no wrong bits when blocks are lost."""

import random
import time

import msgspec
import pytest
import torch

from penstock.engine.engine import Engine
from penstock.engine.sequence import Role
from penstock.errors import PrefillLost
from penstock.protocol import Accepted, Error, FirstToken, GenerateRequest, Ticket, TokenLogprob
from tests.engine.harness import GENERATION, RecordingRunner, collect, make_engine, prompt, request, run
from tests.engine.pair import Pair
from tests.engine.test_engine import logits_of

PROMPT = prompt(45)


def alone(each: GenerateRequest, dtype: torch.dtype = torch.float32) -> Engine:
    """One engine that computed the request by itself."""
    engine = make_engine(dtype=dtype)
    run(engine, each)
    return engine


def rows_of(engine: Engine, name: str) -> int:
    assert isinstance(engine.runner, RecordingRunner)
    return engine.runner.rows_of.get(name, 0)


def assert_same_stream(pair: Pair, reference: Engine, name: str = "a") -> None:
    """Every logits row is bitwise the reference's: the first on P, the others on D."""
    expected = logits_of(reference, name)
    first = min(expected)
    found = logits_of(pair.decode.engine, name) | {first: logits_of(pair.prefill.engine, name)[first]}
    assert found.keys() == expected.keys()
    assert len({int(row.argmax()) for row in expected.values()}) >= 8
    for length, row in expected.items():
        assert torch.equal(row, found[length]), f"logits after {length} tokens differ"


@pytest.mark.parametrize("step_tokens", [7, 16, 64])
def test_two_workers_equal_one(transport: str, dtype: torch.dtype, step_tokens: int) -> None:
    reference = alone(request("a", PROMPT), dtype)
    prefill = make_engine(dtype=dtype, max_step_tokens=step_tokens)
    with Pair(transport, prefill=prefill, decode=make_engine(dtype=dtype)) as pair:
        answer = pair.run(request("a", PROMPT)).answers["a"]
        assert answer.done is not None
        assert answer.done.pulled_blocks == 6
        assert answer.done.pulls >= 1
        assert 0 < answer.done.pull_s < 10
        assert rows_of(prefill, "a") == 45, "P computed the prompt"
        assert rows_of(pair.decode.engine, "a") == 11, "D computed only what follows the first token"
        assert_same_stream(pair, reference)


@pytest.mark.parametrize("where", ["prefill", "decode", "both"])
def test_prefix_hits_do_not_change_logits(transport: str, dtype: torch.dtype, where: str) -> None:
    reference = alone(request("a", PROMPT), dtype)
    with Pair(transport, prefill=make_engine(dtype=dtype), decode=make_engine(dtype=dtype)) as pair:
        if where != "decode":
            run(pair.prefill.engine, request("warm", PROMPT[:30]))
        if where != "prefill":
            run(pair.decode.engine, request("warm", PROMPT[:30]))
        done = pair.run(request("a", PROMPT)).answers["a"].done
        assert done is not None
        assert done.cached_tokens == (0 if where == "decode" else 24)
        assert done.pulled_blocks == (6 if where == "prefill" else 3)
        assert_same_stream(pair, reference)


def test_a_prompt_that_is_all_here_goes_on_without_waiting_for_news() -> None:
    """Every ticket comes before the step that admits the request and no block is to be read: nothing else will come."""
    whole = prompt(48)
    expected = run(make_engine(), request("a", whole))["a"].tokens
    with Pair() as pair:
        run(pair.prefill.engine, request("warm", whole))
        run(pair.decode.engine, request("warm", whole))
        decode, prefill = pair.decode, pair.prefill
        decode.engine.add(request("a", whole), Role.PULL)
        decode.redeemer.arrived("a", Accepted(GENERATION, prefill.peer))
        prefill.engine.add(request("a", whole), Role.PREFILL)
        while prefill.engine.step():
            pass
        for out in prefill.engine.outputs:
            assert isinstance(out.frame, Ticket)
            decode.redeemer.arrived("a", out.frame)
        while decode.engine.step():
            pass
        answer = collect(decode.engine)["a"]
        assert answer.done is not None
        assert answer.done.pulled_blocks == 0
        assert answer.tokens == expected


def test_samples_at_temperature_one_equal_one_worker(transport: str) -> None:
    each = request("a", PROMPT, n=3, temperature=1.0)
    expected = run(make_engine(), each)["a"].tokens
    with Pair(transport) as pair:
        assert pair.run(each).answers["a"].tokens == expected
        assert pair.decode.engine.num_prompt_tokens == 0
    assert len({tuple(tokens) for tokens in expected.values()}) == 3


def test_decode_preempts_and_recomputes_pulled_sequences() -> None:
    requests = [request(f"r{i}", prompt(45, seed=i), max_tokens=30) for i in range(3)]
    expected = {each.request_id: run(make_engine(), each)[each.request_id].tokens for each in requests}
    with Pair(decode=make_engine(num_blocks=22)) as pair:
        answers = pair.run(*requests).answers
        assert pair.decode.engine.num_preemptions > 0
        assert {name: answer.tokens for name, answer in answers.items()} == expected


@pytest.mark.parametrize("damage", ["zero", "swap", "shift"])
def test_the_comparison_notices_damaged_blocks(damage: str) -> None:
    reference = alone(request("a", PROMPT))
    with Pair() as pair:

        def spoil(name: str, _: Ticket) -> bool:
            mine = pair.prefill.engine.requests[name].sequences[0].blocks
            kv = pair.prefill.engine.runner.kv
            match damage:
                case "zero":
                    kv[mine[2]] = 0
                case "swap":  # with a block of another prompt
                    kv[mine[1]] = kv[pair.prefill.engine.requests["mate"].sequences[0].blocks[1]]
                case "shift":
                    kv[mine[1], ..., 1:, :] = kv[mine[1], ..., :-1, :].clone()
            return True

        pair.prefill.engine.add(request("mate", prompt(20, seed=4)), Role.PREFILL)
        while pair.prefill.engine.step():
            pass
        pair.on_ticket = spoil
        pair.run(request("a", PROMPT))
        with pytest.raises(AssertionError, match="differ"):
            assert_same_stream(pair, reference)


def test_a_first_token_that_ends_the_sequence_moves_no_block() -> None:
    with Pair() as pair:
        done = pair.run(request("a", PROMPT, max_tokens=1)).answers["a"].done
        assert done is not None
        assert done.pulled_blocks == 0
        assert pair.decode.engine.pool.num_free == 64
        assert pair.decode.engine.load().waiting == 0


def test_pulls_count_as_sequences_of_the_batch() -> None:
    requests = [request(f"r{i}", prompt(20, seed=i), n=2, temperature=1.0) for i in range(6)]
    with Pair(decode=make_engine(max_sequences=4)) as pair:
        most = 0

        def watch(_name: str, _ticket: Ticket) -> bool:
            nonlocal most
            most = max(most, pair.decode.engine.load().running)
            return True

        pair.on_ticket = watch
        pair.decode.engine.trace = lambda _event, _name: watch("", None)  # type: ignore[arg-type, assignment]
        assert not pair.run(*requests).lost
        assert 2 <= most <= 4


def test_another_layout_is_refused_with_both_values() -> None:
    with Pair(prefill=make_engine(block_size=16)) as pair:
        result = pair.run(request("a", PROMPT))
        [error] = [frame for frame in result.answers["a"].others if isinstance(frame, Error)]
        assert result.lost == {"a"}
        assert "block_size=16" in error.message
        assert "block_size=8" in error.message
        assert pair.decode.engine.pool.num_free == 64


def test_a_worker_whose_reads_time_out_is_refused_before_it_computes_until_a_read_of_it_lands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Probe:
        epochs = None
        landed = False

        def poll(self) -> bool:
            return self.landed

    probe = Probe()
    with Pair() as pair:
        puller = pair.decode.puller
        with monkeypatch.context() as patch:
            patch.setattr(pair.decode.transport, "read_epochs", lambda *_: probe)
            puller.silent.add(GENERATION)
            result = pair.run(request("a", PROMPT))
            [error] = [frame for frame in result.answers["a"].others if isinstance(frame, Error)]
            assert error.code == "transfer_failed"
            assert pair.decode.engine.pool.num_free == 64
            assert not pair.decode.engine.requests
            assert GENERATION in puller.silent
        probe.landed = True
        deadline = time.monotonic() + 5
        while puller.silent:
            assert time.monotonic() < deadline
        assert not pair.run(request("a", PROMPT)).lost


def test_small_pools_do_not_deadlock() -> None:
    """Pools of 1.5 prompts on both sides, 16 prompts at once."""
    requests = [request(f"r{i}", prompt(60, seed=i), max_tokens=20) for i in range(16)]
    with Pair(prefill=make_engine(num_blocks=12), decode=make_engine(num_blocks=12)) as pair:
        result = pair.run(*requests)
        assert not result.lost
        for each in requests:
            assert result.answers[each.request_id].tokens == run(make_engine(), each)[each.request_id].tokens
        assert pair.prefill.engine.pool.num_free == pair.decode.engine.pool.num_free == 12


def test_a_lost_prefill_ends_in_a_retryable_error_and_keeps_what_was_verified() -> None:
    with Pair(prefill=make_engine(max_step_tokens=16)) as pair:
        decode = pair.decode
        decode.engine.add(request("a", PROMPT), Role.PULL)
        decode.redeemer.arrived("a", Accepted(GENERATION, pair.prefill.peer))
        pair.prefill.engine.add(request("a", PROMPT), Role.PREFILL)
        pair.on_ticket = lambda _, ticket: not ticket.last
        while len(decode.engine.pool.snapshot()) < 4:
            pair.step()
        decode.redeemer.failed("a", PrefillLost("gone"))
        result = pair.pump({"a"})
        assert result.lost == {"a"}
        assert decode.engine.pool.num_free == 64
        again = run(decode.engine, request("again", PROMPT))["again"]
        assert again.done is not None
        assert again.done.cached_tokens >= 32


@pytest.mark.parametrize(
    ("first", "asked"),
    [
        (FirstToken(2**31 - 1), None),
        (FirstToken(7, TokenLogprob(-0.5)), None),
        (FirstToken(7), 0),
        (FirstToken(7, TokenLogprob(-0.5, 3 * ((7, -0.5),))), 2),
    ],
    ids=["of no vocabulary", "with an unasked log-probability", "without", "with more alternatives"],
)
def test_first_tokens_that_cannot_be_true_are_the_prefill_workers_fault(first: FirstToken, asked: int | None) -> None:
    with Pair() as pair:
        decode = pair.decode
        decode.engine.add(request("a", PROMPT, logprobs=asked), Role.PULL)
        decode.redeemer.arrived("a", Accepted(GENERATION, pair.prefill.peer))
        pair.prefill.engine.add(request("a", PROMPT, logprobs=asked), Role.PREFILL)
        while pair.prefill.engine.step():
            pass
        for out in pair.prefill.engine.outputs:
            assert isinstance(out.frame, Ticket)
            changed = msgspec.structs.replace(out.frame, first_tokens=(first,)) if out.frame.last else out.frame
            decode.redeemer.arrived("a", changed)
        answer = collect(decode.engine)["a"]
        assert answer.tokens == {}
        assert [getattr(frame, "code", "") for frame in answer.others] == ["prefill_lost"]


def race(fence: bool) -> tuple[int, int, int]:
    """200 requests; P frees early and writes over its blocks before D reads. Returns (wrong, lost, reads met by that).

    Without poison: what D reads in error is another prompt's KV, not NaN.
    """
    rng = random.Random(5)
    prompts = [prompt(rng.randrange(20, 60), seed=index) for index in range(200)]
    expected = make_engine()
    wrong = lost = reused = 0
    prefill = make_engine(num_blocks=24, prefix_cache=False, poison=False)
    decode = make_engine(num_blocks=24, prefix_cache=False, poison=False)
    with Pair(prefill=prefill, decode=decode, fence=fence) as pair:

        def free_early(name: str, ticket: Ticket) -> bool:
            nonlocal reused
            if ticket.last and rng.random() < 0.6:
                prefill.cancel(name)  # the injected fault: the lease ends while the ticket is still out
                prefill.add(request("filler", prompt(180, seed=rng.randrange(10**6))), Role.PREFILL)
                while prefill.step():
                    pass
                overwritten = prefill.requests["filler"].sequences[0].blocks
                reused += any(block.block in overwritten for block in ticket.blocks)
                prefill.cancel("filler")
                prefill.outputs.clear()
            return True

        pair.on_ticket = free_early
        for index, tokens in enumerate(prompts):
            each = request(f"r{index}", tokens, max_tokens=8)
            result = pair.run(each)
            if result.lost:
                lost += 1
            elif result.answers[each.request_id].tokens != run(expected, each)[each.request_id].tokens:
                wrong += 1
    return wrong, lost, reused


def test_stale_tickets_never_give_a_wrong_answer() -> None:
    wrong, lost, reused = race(fence=True)
    assert reused >= 50, "void: too few reads met a reused block"
    assert wrong == 0
    assert lost >= reused


def test_without_the_fence_stale_tickets_give_wrong_answers() -> None:
    wrong, _, reused = race(fence=False)
    assert reused >= 50
    assert wrong > 0
