"""A worker reads from another's cache what it lacks and computes the rest: the same bits, whatever the source does."""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

from penstock.engine.engine import Engine
from penstock.engine.messages import Wanted
from penstock.engine.sequence import Role
from penstock.errors import PrefillLost
from penstock.protocol import Accepted, BlockTicket, Ticket
from tests.engine.harness import RecordingRunner, make_engine, prompt, request, run
from tests.engine.pair import Pair, Side
from tests.engine.sources import Reply, Sources
from tests.engine.test_engine import logits_of

PROMPT = prompt(45)


def workers(transport: str = "tcp", dtype: torch.dtype = torch.float32, **options: Any) -> Sources:
    """Two, of which "there" is to be the source."""
    return Sources(
        transport,
        here=make_engine(dtype=dtype, generation="here", **options),
        there=make_engine(dtype=dtype, generation="there", **options),
    )


def rows_of(engine: Engine, name: str = "a") -> int:
    assert isinstance(engine.runner, RecordingRunner)
    return engine.runner.rows_of.get(name, 0)


def assert_same_logits(found: Engine, reference: Engine, *, since: int = 0) -> None:
    """All logits after `since` tokens that the reference has."""
    expected = {length: row for length, row in logits_of(reference, "a").items() if length >= since}
    ours = logits_of(found, "a")
    assert ours.keys() == expected.keys()
    assert len({int(row.argmax()) for row in expected.values()}) >= 4
    for length, row in expected.items():
        assert torch.equal(row, ours[length]), f"logits after {length} tokens differ"


def assert_nothing_is_left(sources: Sources, num_blocks: int = 64) -> None:
    for side in sources.sides.values():
        assert side.engine.pool.num_free == num_blocks
        assert not side.engine.requests
        assert not side.redeemer._pulls
        assert not side.redeemer._by_key


def test_what_was_read_equals_what_is_computed(transport: str, dtype: torch.dtype) -> None:
    reference = make_engine(dtype=dtype)
    run(reference, request("a", PROMPT))
    with workers(transport, dtype) as both:
        run(both.engine("there"), request("warm", PROMPT))
        done = both.answer("here", request("a", PROMPT, source="there"))["a"].done
        assert done is not None
        assert (done.sourced_blocks, done.pulled_blocks, done.cached_tokens) == (5, 5, 40)
        assert rows_of(both.engine("here")) == 5 + 11, "the rest of the prompt, and all tokens but the last"
        assert_same_logits(both.engine("here"), reference)
        assert_nothing_is_left(both)
        again = run(both.engine("here"), request("again", PROMPT))["again"].done
        assert again is not None
        assert (again.cached_tokens, again.sourced_blocks) == (40, 0), "what was read stays in the cache"


def test_only_what_is_not_here_is_asked_for(transport: str) -> None:
    reference = make_engine()
    run(reference, request("a", PROMPT))
    asked = []

    def note(both: Sources, reader: str, wanted: Wanted, source: Side) -> None:
        asked.append(wanted.hashes)
        both.tell(reader, wanted, source)

    with workers(transport) as both:
        both.reply = note
        run(both.engine("here"), request("warm", PROMPT[:20]))
        run(both.engine("there"), request("warm", PROMPT[:33]))
        done = both.answer("here", request("a", PROMPT, source="there"))["a"].done
        assert done is not None
        assert (done.sourced_blocks, done.cached_tokens) == (2, 32)
        assert [len(hashes) for hashes in asked] == [3]
        assert_same_logits(both.engine("here"), reference)
        both.answer("here", request("b", PROMPT, source="there"))
        assert len(asked) == 1, "nothing is missing any more"
        assert_nothing_is_left(both)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"frequency_penalty": 1.5, "presence_penalty": -1.0}])
def test_a_stream_goes_on_elsewhere_with_the_kv_of_its_first_worker(dtype: torch.dtype, sampling: Any) -> None:
    """The prompt's blocks and those of the answer so far."""
    reference = make_engine(dtype=dtype)
    whole = run(reference, request("a", PROMPT, max_tokens=24, **sampling))["a"].tokens[0]
    with workers(dtype=dtype) as both:
        run(both.engine("there"), request("first", PROMPT, max_tokens=14, **sampling))
        resumed = request("a", PROMPT, output=tuple(whole[:13]), max_tokens=24, source="there", **sampling)
        answer = both.answer("here", resumed)["a"]
        assert whole[:13] + answer.tokens[0] == whole
        assert answer.done is not None
        assert answer.done.sourced_blocks == 7, "58 tokens, of which the last is computed"
        assert_same_logits(both.engine("here"), reference, since=58)


def test_samples_fork_from_what_was_read() -> None:
    each = request("a", PROMPT, n=3, temperature=1.0, repetition_penalty=1.3)
    expected = run(make_engine(), each)["a"].tokens
    with workers() as both:
        run(both.engine("there"), request("warm", PROMPT))
        answer = both.answer("here", msgspec.structs.replace(each, source="there"))["a"]
        assert answer.tokens == expected
        assert answer.done is not None
        assert answer.done.sourced_blocks == 5
        assert_nothing_is_left(both)


def test_samples_that_found_their_prompt_here_ask_nobody_when_they_are_preempted() -> None:
    """What a preempted sample lacks is its own answer, which only this worker had."""
    each = request("a", PROMPT, n=2, temperature=1.0, max_tokens=24, source="there")
    expected = run(make_engine(), request("a", PROMPT, n=2, temperature=1.0, max_tokens=24))["a"].tokens
    asked = []

    def note(both: Sources, reader: str, wanted: Wanted, source: Side) -> None:
        asked.append(wanted)
        lost(both, reader, wanted, source)

    with workers(num_blocks=11) as both:
        both.reply = note
        run(both.engine("here"), request("warm", PROMPT, max_tokens=1))
        answer = both.answer("here", each)["a"]
        assert both.engine("here").num_preemptions > 0
        assert answer.tokens == expected
        assert asked == []
        assert_nothing_is_left(both, num_blocks=11)


def test_a_prefill_worker_tickets_what_it_has_read() -> None:
    """Source, prefill and decode worker: three caches, one answer."""
    reference = make_engine()
    run(reference, request("a", PROMPT))
    with workers() as both:
        run(both.engine("there"), request("warm", PROMPT))
        frames = both.answer("here", request("a", PROMPT, source="there"), role=Role.PREFILL)["a"].others
        tickets = [frame for frame in frames if isinstance(frame, Ticket)]
        assert [len(ticket.blocks) for ticket in tickets] == [5, 1]
        assert tickets[-1].cached_tokens == 40
        assert both.engine("here").load().leased == 1
        with Pair() as pair:
            decode, owner = pair.decode, both.sides["here"]
            decode.engine.add(request("a", PROMPT), Role.PULL)
            decode.redeemer.arrived("a", Accepted("here", owner.peer))
            for ticket in tickets:
                decode.redeemer.arrived("a", ticket)
            answer = pair.pump({"a"}).answers["a"]
        assert answer.tokens == run(make_engine(), request("a", PROMPT))["a"].tokens
        found = logits_of(decode.engine, "a") | {45: logits_of(both.engine("here"), "a")[45]}
        assert all(torch.equal(row, found[length]) for length, row in logits_of(reference, "a").items())
        both.engine("here").cancel("a")
        assert_nothing_is_left(both)


def lost(both: Sources, reader: str, wanted: Wanted, _: Side) -> None:
    both.sides[reader].redeemer.failed(wanted.request_id, PrefillLost("it is gone"))


def lost_after_its_ticket(both: Sources, reader: str, wanted: Wanted, source: Side) -> None:
    both.tell(reader, wanted, source)
    lost(both, reader, wanted, source)


def other_layout(both: Sources, reader: str, wanted: Wanted, source: Side) -> None:
    layout = msgspec.structs.replace(source.peer.layout, weights_version="2")
    peer = msgspec.structs.replace(source.peer, layout=layout)
    both.sides[reader].redeemer.arrived(wanted.request_id, Accepted("there", peer))
    both.tell(reader, wanted, source)


def spoilt(**changes: Any) -> Reply:
    """Its ticket says something else than it should."""

    def answer(both: Sources, reader: str, wanted: Wanted, source: Side) -> None:
        ticket = source.engine.tickets.lookup(wanted.request_id, wanted.hashes)
        made = {name: change(ticket) for name, change in changes.items()}
        both.carry(reader, wanted, source, msgspec.structs.replace(ticket, **made))

    return answer


def each_block(**changes: Any) -> Callable[[Ticket], tuple[BlockTicket, ...]]:
    return lambda ticket: tuple(msgspec.structs.replace(block, **changes) for block in ticket.blocks)


FAILURES: dict[str, Reply] = {
    "lost": lost,
    "lost-after-its-ticket": lost_after_its_ticket,
    "other-layout": other_layout,
    "other-generation": spoilt(generation=lambda _: "another"),
    "other-hashes": spoilt(blocks=each_block(hash=b"x" * 16)),
    "other-epochs": spoilt(blocks=each_block(epoch=1)),
    "other-order": spoilt(blocks=lambda ticket: ticket.blocks[::-1]),
    "no-such-block": spoilt(blocks=each_block(block=64)),
    "too-many": spoilt(blocks=lambda ticket: (*ticket.blocks, *ticket.blocks)),
    "later-ones": spoilt(first_position=lambda _: 1),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("role", [Role.GENERATE, Role.PREFILL])
def test_a_source_that_fails_costs_nothing_but_time(failure: str, role: Role) -> None:
    reference = make_engine()
    run(reference, request("a", PROMPT))
    with workers() as both:
        run(both.engine("there"), request("warm", PROMPT))
        both.reply = FAILURES[failure]
        both.answer("here", request("a", PROMPT, source="there"), role=role)
        for length, row in logits_of(both.engine("here"), "a").items():
            assert torch.equal(row, logits_of(reference, "a")[length])
        assert both.sides["here"].redeemer.num_missed_sources == 1
        if failure != "lost-after-its-ticket":  # of its blocks some may have come
            assert rows_of(both.engine("here")) >= 45, "computed from the first token on"
        both.engine("here").cancel("a")
        assert_nothing_is_left(both)


def test_a_source_that_has_nothing_is_a_miss() -> None:
    with workers() as both:
        done = both.answer("here", request("a", PROMPT, source="there"))["a"].done
        assert done is not None
        assert (done.sourced_blocks, done.cached_tokens) == (0, 0)
        assert both.sides["here"].redeemer.num_missed_sources == 1
        assert both.engine("here").num_preemptions == 0
        assert_nothing_is_left(both)


def test_leaving_while_blocks_are_read_frees_them() -> None:
    with workers() as both:
        run(both.engine("there"), request("warm", PROMPT))
        here = both.sides["here"]
        for moment in ("asked", "reading"):
            here.engine.add(request(moment, PROMPT, source="there"))
            here.engine.step()
            [wanted] = here.wanted
            here.wanted.clear()
            if moment == "reading":
                both.tell("here", wanted, both.sides["there"])
            assert here.engine.pool.num_held == 6
            here.engine.cancel(moment)
            both.close_call(moment)
            while here.engine.pool.num_held:
                both.step()
        assert_nothing_is_left(both)


def test_those_that_read_count_as_sequences_of_the_batch() -> None:
    with workers(max_sequences=2) as both:
        both.reply = lambda *_: None
        for index in range(3):
            both.engine("here").add(request(f"r{index}", prompt(20, seed=index), source="there"))
        both.step()
        both.step()
        assert both.engine("here").pool.num_held == 6
        assert len(both.engine("here").waiting) == 1


def test_workers_with_small_pools_that_read_from_each_other_do_not_deadlock() -> None:
    """Pools of 1.5 prompts, 16 at once on each worker: what one asks for, the other has just computed."""
    prompts = [prompt(60, seed=index) for index in range(16)]
    expected = run(make_engine(num_blocks=256), *(request(str(i), prompts[i], max_tokens=20) for i in range(16)))
    with workers(num_blocks=12) as both:
        answers = both.answer_all(
            {
                "here": [request(f"here {i}", prompts[i], max_tokens=20, source="there") for i in range(16)],
                "there": [request(f"there {i ^ 1}", prompts[i ^ 1], max_tokens=20, source="here") for i in range(16)],
            }
        )
        for name, answer in answers.items():
            assert answer.tokens == expected[name.split()[1]].tokens
        assert sum(side.redeemer.num_sourced_blocks for side in both.sides.values()) > 0
        assert_nothing_is_left(both, num_blocks=12)


def race(fence: bool) -> tuple[int, int]:
    """80 prompts whose source frees its blocks and computes others in them before they are read.

    Returns (wrong answers, reads that met a reused block). Without poison: what is read in error is another prompt's.
    """
    rng = random.Random(5)
    expected = make_engine()
    here = make_engine(num_blocks=24, poison=False, generation="here")
    there = make_engine(num_blocks=24, poison=False, generation="there")
    wrong = reused = 0

    def reuse(both: Sources, reader: str, wanted: Wanted, source: Side) -> None:
        nonlocal reused
        ticket = source.engine.tickets.lookup(wanted.request_id, wanted.hashes)
        both.close_call(wanted.request_id)
        if rng.random() < 0.7:
            other = request(f"other {wanted.request_id}", prompt(180, seed=rng.randrange(1 << 30)), max_tokens=1)
            run(source.engine, other)
        reused += any(int(source.engine.pool.epochs[block.block]) != block.epoch for block in ticket.blocks)
        both.carry(reader, wanted, source, ticket)

    with Sources(fence=fence, here=here, there=there) as both:
        both.reply = reuse
        for index in range(80):
            tokens = prompt(rng.randrange(20, 60), seed=index)
            run(both.engine("there"), request("warm", tokens, max_tokens=1))
            answer = both.answer("here", request(str(index), tokens, max_tokens=8, source="there"))[str(index)]
            wrong += answer.tokens != run(expected, request("a", tokens, max_tokens=8))["a"].tokens
    return wrong, reused


def test_blocks_that_the_source_reuses_never_give_a_wrong_answer() -> None:
    wrong, reused = race(fence=True)
    assert reused >= 40, "void: too few reads met a reused block"
    assert wrong == 0


def test_without_the_fence_they_give_wrong_answers() -> None:
    wrong, reused = race(fence=False)
    assert reused >= 40
    assert wrong > 0
