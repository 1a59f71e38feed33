"""The index ends equal to what the workers hold, whatever happens to their streams of events."""

import math
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.protocol import Events, Load, StepTiming, StoredBlock
from penstock.router.index.keys import PromptKeys, opaque_salt
from penstock.router.index.mirror import BadEvents, Gap
from penstock.router.index.prefix_index import PrefixIndex, Subscription
from tests.router.cache_model import CacheModel

TOKENS = tuple(range(100, 121))
SALTS = ("", "one", "two")


def index_of(*workers: CacheModel, max_blocks: int = 1000) -> PrefixIndex:
    """An index that has heard all these workers have to say."""
    index = PrefixIndex(max_blocks)
    for worker in workers:
        hear(index, worker)
    return index


def hear(index: PrefixIndex, worker: CacheModel) -> Subscription:
    """Subscribes and reads the snapshot."""
    worker.subscription = index.subscribe(worker.url)
    worker.snapshot()
    read(worker)
    return worker.subscription


def read(worker: CacheModel) -> None:
    """Everything that the worker has said."""
    assert worker.subscription is not None
    while worker.frames:
        apply(worker.subscription, worker.frames.pop(0))


def apply(subscription: Subscription, frame: Events) -> None:
    for _ in subscription.apply(frame):
        pass


def match(index: PrefixIndex, tokens: tuple[int, ...] = TOKENS, salt: str = "") -> dict[str, int]:
    return index.match(PromptKeys(salt, tokens))


def test_a_shared_prefix_is_found_to_its_last_full_block() -> None:
    a, b = CacheModel("a"), CacheModel("b")
    a.serve(TOKENS)
    b.serve(TOKENS[:9])
    index = index_of(a, b)
    assert match(index) == {"a": 20, "b": 8}
    assert match(index, (*TOKENS[:11], 7, 7)) == {"a": 10, "b": 8}
    assert match(index, (7, *TOKENS)) == {}


def test_the_last_token_is_always_computed() -> None:
    worker = CacheModel("a")
    worker.serve(TOKENS)
    index = index_of(worker)
    assert match(index, TOKENS[:8]) == {"a": 6} == {"a": worker.cached_tokens(TOKENS[:8])}
    assert match(index, TOKENS[:2]) == {}


def test_salts_share_nothing_and_unknown_ones_match_nobody() -> None:
    worker = CacheModel("a", num_blocks=40)
    worker.serve(TOKENS, "one")
    worker.serve(TOKENS, "nobody's")
    index = index_of(worker)
    assert match(index, salt="one") == {"a": 20}
    assert match(index, salt="two") == match(index) == {}


def test_salt_and_adapter_are_both_hidden_and_both_count() -> None:
    told = {
        opaque_salt("secret", salt, adapter) for salt in ("", "tenant", "adapter") for adapter in ("", "adapter", "b")
    }
    assert len(told) == 9
    assert opaque_salt("secret", "") == ""
    assert opaque_salt("other", "tenant") != opaque_salt("secret", "tenant")
    assert not any("tenant" in each for each in told)


def test_workers_may_differ_in_block_size() -> None:
    index = PrefixIndex(1000)
    for url, size in (("four", 4), ("ten", 10)):
        chain = [(b"root", b"0")] + [(b"%d" % i, b"%d" % (i + 1)) for i in range(20 // size)]
        stored = tuple(
            StoredBlock(name, parent, TOKENS[at * size : (at + 1) * size], "" if at == 0 else None)
            for at, (parent, name) in enumerate(chain[: 20 // size])
        )
        subscription = index.subscribe(url)
        apply(subscription, Events(generation="g", sequence=0, snapshot=True, block_size=size, stored=stored))
    assert match(index, TOKENS[:19]) == {"four": 16, "ten": 10}


def test_a_request_finds_what_was_predicted_although_it_was_evicted_on_its_way() -> None:
    worker = CacheModel("a", num_blocks=32)
    worker.serve(TOKENS)
    worker.serve(tuple(range(1000, 1042)))
    index = index_of(worker)
    predicted, as_of = match(index), index.as_of("a")
    worker.pool.evict_ahead()
    worker.tell()
    assert worker.cached_tokens(TOKENS, as_of=as_of) == predicted["a"] == 20
    read(worker)
    assert worker.cached_tokens(TOKENS, as_of=index.as_of("a")) == match(index)["a"] == 18
    hear(index, worker)
    assert worker.cached_tokens(TOKENS, as_of=index.as_of("a")) == match(index)["a"] == 18
    assert index.as_of("nobody") == 0


def test_what_a_worker_is_still_to_compute_is_pending() -> None:
    worker = CacheModel("a")
    worker.serve(TOKENS[:5])
    index = index_of(worker)
    keys = PromptKeys("", TOKENS)
    expectation = index.expect("a", keys)
    found = index.match(keys)
    assert (found, index.pending(keys, found)) == ({"a": 20}, {"a"})
    shorter = PromptKeys("", TOKENS[:5])
    assert index.pending(shorter, index.match(shorter)) == set()
    expectation.is_pending = False
    assert index.pending(keys, found) == set()


def test_what_a_worker_has_told_of_is_not_pending() -> None:
    worker = CacheModel("a")
    index = index_of(worker)
    keys = PromptKeys("", TOKENS)
    index.expect("a", keys)
    assert worker.begin(TOKENS)
    for num_blocks, pending in ((3, {"a"}), (7, set())):
        worker.compute(worker.running[0], num_blocks)
        worker.tell()
        read(worker)
        assert index.pending(keys, index.match(keys)) == pending


def test_an_expectation_counts_at_once_and_until_it_is_retracted() -> None:
    worker = CacheModel("a")
    index = index_of(worker)
    expectation = index.expect("a", PromptKeys("", TOKENS))
    assert match(index) == {"a": 20}
    assert match(index, salt="one") == {}
    expectation.retract()
    expectation.retract()
    assert match(index) == {}
    assert len(index) == 0
    assert index.expect("a stranger", PromptKeys("", TOKENS)).keys == []


def test_what_the_worker_has_told_of_is_no_expectation_any_more() -> None:
    worker = CacheModel("a")
    index = index_of(worker)
    expectation = index.expect("a", PromptKeys("", TOKENS))
    assert worker.begin(TOKENS)
    worker.compute(worker.running[0], num_blocks=4)
    worker.tell()
    read(worker)
    expectation.retract()
    assert match(index) == {"a": 8}


def test_an_expectation_survives_a_new_subscription() -> None:
    worker = CacheModel("a")
    worker.serve(TOKENS[:5])
    index = index_of(worker)
    expectation = index.expect("a", PromptKeys("", TOKENS))
    hear(index, worker)
    assert match(index) == {"a": 20}
    expectation.retract()
    assert match(index) == {"a": 4}


def test_a_worker_that_goes_is_forgotten_at_once_and_its_memory_soon() -> None:
    a, b = CacheModel("a"), CacheModel("b")
    a.serve(TOKENS)
    b.serve(TOKENS[:9])
    index = index_of(a, b)
    index.expect("a", PromptKeys("one", TOKENS))
    index.forget("a")
    assert match(index) == {"b": 8}
    assert match(index, salt="one") == {}
    steps = 1
    while index.sweep(3):
        steps += 1
    assert steps >= 6, "in slices"
    assert len(index) == 4
    hear(index, a)
    assert match(index) == {"a": 20, "b": 8}, "its bit is used again"


def test_a_new_process_at_the_same_address_holds_nothing() -> None:
    worker = CacheModel("a")
    worker.serve(TOKENS)
    index = index_of(worker)
    index.met("a", worker.generation)
    assert match(index) == {"a": 20}
    worker.restart()
    index.met("a", worker.generation)
    assert match(index) == {}
    assert worker.subscription is not None
    with pytest.raises(Gap):
        apply(worker.subscription, Events(generation=worker.generation, sequence=1))


def test_the_old_view_serves_until_the_new_snapshot_is_whole() -> None:
    worker = CacheModel("a")
    worker.serve(TOKENS)
    index = index_of(worker)
    again = index.subscribe("a")
    worker.snapshot(part_blocks=4)
    for frame in worker.frames:
        assert match(index) == {"a": 20}
        apply(again, frame)
    while index.sweep(100):
        pass
    assert match(index) == {"a": 20}
    assert len(index) == 10


def test_a_subscription_that_ends_within_its_snapshot_leaves_nothing() -> None:
    worker = CacheModel("a")
    worker.serve(TOKENS)
    index = PrefixIndex(1000)
    subscription = index.subscribe("a")
    worker.snapshot()
    apply(subscription, worker.frames[0])
    subscription.close()
    while index.sweep(100):
        pass
    assert len(index) == 0


def test_memory_is_bounded_and_shared_out() -> None:
    greedy, modest = CacheModel("greedy", num_blocks=100), CacheModel("modest", num_blocks=100)
    index = index_of(greedy, modest, max_blocks=40)
    for start in range(1000, 2000, 100):
        greedy.serve(tuple(range(start, start + 20)))
    modest.serve(TOKENS)
    for worker in (greedy, modest):
        worker.tell()
        read(worker)
    assert len(index) == 20 + 10
    assert match(index) == {"modest": 20}
    assert greedy.subscription is not None
    assert greedy.subscription.num_dropped > 0


def test_who_comes_first_does_not_keep_what_is_anothers_share() -> None:
    greedy, modest = CacheModel("greedy", num_blocks=100), CacheModel("modest", num_blocks=100)
    for start in range(1000, 1500, 100):
        greedy.serve(tuple(range(start, start + 20)))
    modest.serve(TOKENS)
    index = index_of(greedy, max_blocks=40)
    assert len(index) == 40
    hear(index, modest)
    assert match(index) == {"modest": 20}
    assert match(index, tuple(range(1000, 1020))) == {"greedy": 18}, "prefixes stay whole"
    assert len(index) == 40


def test_whose_snapshot_is_on_its_way_has_a_share_too() -> None:
    greedy = CacheModel("greedy", num_blocks=100)
    for start in range(1000, 1500, 100):
        greedy.serve(tuple(range(start, start + 20)))
    index = PrefixIndex(40)
    index.subscribe("modest")
    hear(index, greedy)
    assert len(index) == 20
    index.forget("modest")
    hear(index, greedy)
    while index.sweep(100):
        pass
    assert len(index) == 40


def bad(**changes: Any) -> Events:
    """The frame after the snapshot, with something wrong."""
    return Events(**{"generation": "g", "sequence": 1} | changes)


def block(name: bytes, tokens: tuple[int, ...], parent: bytes = b"root", salt: str | None = "") -> StoredBlock:
    return StoredBlock(name, parent, tokens, salt)


NONSENSE = {
    "one hash for two blocks": bad(stored=(block(b"x", (1, 2)), block(b"x", (3, 4)))),
    "a known hash for another block": bad(stored=(block(b"h", (3, 4)),)),
    "too many tokens": bad(stored=(block(b"x", (1, 2, 3)),)),
    "too few tokens": bad(stored=(block(b"x", (1,)),)),
    "negative token": bad(stored=(block(b"x", (1, -2)),)),
    "huge token": bad(stored=(block(b"x", (1, 2**40)),)),
    "more blocks than it has": bad(stored=(block(b"x", (5, 6)),), load=Load(num_blocks=1)),
    "more requests than anybody has": bad(load=Load(waiting=10**15, num_blocks=9)),
    "negative load": bad(load=Load(running=-1, num_blocks=9)),
    "NaN": bad(timings=(StepTiming(1, 1, 1, math.nan),)),
    "infinite time": bad(timings=(StepTiming(1, 1, 1, math.inf),)),
    "time going back": bad(timings=(StepTiming(1, 1, 1, -0.5),)),
    "a step of a year": bad(timings=(StepTiming(1, 1, 1, 3e7),)),
    "a flood of steps": bad(timings=(StepTiming(1, 1, 1, 0.1),) * 257),
    "negative rows": bad(timings=(StepTiming(-4, 1, 1, 0.1),)),
}


@pytest.mark.parametrize("frame", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_refused_and_others_go_on(frame: Events) -> None:
    honest = CacheModel("honest")
    honest.serve(TOKENS)
    index = index_of(honest)
    liar = index.subscribe("liar")
    stored = (block(b"h", TOKENS[:2]),)
    apply(liar, Events(generation="g", sequence=0, snapshot=True, block_size=2, stored=stored))
    assert match(index) == {"honest": 20, "liar": 2}
    with pytest.raises(BadEvents):
        apply(liar, frame)
    index.forget("liar")
    while index.sweep(100):
        pass
    assert match(index) == {"honest": 20}
    assert len(index) == 10


@pytest.mark.parametrize("block_size", [-16, -1, 2**16 + 1, 2**80])
def test_blocks_of_an_impossible_size_are_nobodys(block_size: int) -> None:
    honest = CacheModel("honest")
    honest.serve(TOKENS)
    index = index_of(honest)
    liar = index.subscribe("liar")
    with pytest.raises(BadEvents):
        apply(liar, Events(generation="g", sequence=0, snapshot=True, block_size=block_size))
    assert match(index) == {"honest": 20}


@pytest.mark.parametrize(
    "frame",
    [
        bad(sequence=2),
        bad(sequence=0),
        bad(generation="h"),
        bad(snapshot=True),
        bad(cleared=True),
    ],
    ids=["skipped", "repeated", "another process", "second snapshot", "cleared"],
)
def test_what_does_not_follow_needs_a_new_subscription(frame: Events) -> None:
    subscription = PrefixIndex(1000).subscribe("a")
    apply(subscription, Events(generation="g", sequence=0, snapshot=True, block_size=2))
    with pytest.raises(Gap):
        apply(subscription, frame)


def test_a_stream_begins_with_a_snapshot() -> None:
    with pytest.raises(Gap):
        apply(PrefixIndex(1000).subscribe("a"), bad())


def test_blocks_whose_parent_never_comes_are_few() -> None:
    index = PrefixIndex(100_000)
    subscription = index.subscribe("a")
    orphans = tuple(block(b"%d" % i, (i, i), b"nobody", None) for i in range(20_000))
    apply(subscription, Events(generation="g", sequence=0, snapshot=True, block_size=2, stored=orphans))
    assert len(subscription._mirror._orphans) == 4096
    assert len(index) == 0


def test_frames_survive_the_wire() -> None:
    worker = CacheModel("a")
    worker.serve(TOKENS, "one")
    worker.snapshot()
    for frame in worker.frames:
        assert msgspec.json.decode(msgspec.json.encode(frame), type=Events) == frame
    assert msgspec.json.decode(b'["aA==","cA==",[1,2]]', type=StoredBlock).salt is None


PROMPTS = [
    tuple((number >> position) & 1 for position in range(length)) for length in (5, 8, 12) for number in range(8)
]


class Streams(RuleBasedStateMachine):
    """Three workers. The first one's stream is never disturbed; the others' lose, double, swap and cut frames."""

    def __init__(self) -> None:
        super().__init__()
        self.workers = [CacheModel(url) for url in ("steady", "b", "c")]
        self.index = index_of(*self.workers)
        self.expectations: list[Any] = []

    @rule(worker=st.integers(0, 2), prompt=st.sampled_from(PROMPTS), salt=st.sampled_from(SALTS[:2]))
    def begin(self, worker: int, prompt: tuple[int, ...], salt: str) -> None:
        self.workers[worker].begin(prompt, salt)

    @rule(worker=st.integers(0, 2), number=st.integers(0, 5), num_blocks=st.integers(1, 6), tell=st.booleans())
    def compute(self, worker: int, number: int, num_blocks: int, tell: bool) -> None:
        model = self.workers[worker]
        if number < len(model.running):
            model.compute(model.running[number], num_blocks)
        if tell:
            model.tell()

    @rule(worker=st.integers(0, 2), number=st.integers(0, 5), tell=st.booleans())
    def end(self, worker: int, number: int, tell: bool) -> None:
        model = self.workers[worker]
        if number < len(model.running):
            model.end(model.running[number])
        if tell:
            model.tell()

    @rule(worker=st.integers(1, 2))
    def restart(self, worker: int) -> None:
        self.workers[worker].restart()

    @rule(worker=st.integers(0, 2), prompt=st.sampled_from(PROMPTS), salt=st.sampled_from(SALTS[:2]))
    def expect(self, worker: int, prompt: tuple[int, ...], salt: str) -> None:
        self.expectations.append(self.index.expect(self.workers[worker].url, PromptKeys(salt, prompt)))

    @precondition(lambda self: self.expectations)
    @rule()
    def retract(self) -> None:
        self.expectations.pop(0).retract()

    @rule(
        worker=st.integers(1, 2),
        number=st.integers(0, 3),
        how=st.sampled_from(("lose", "double", "swap", "cut", "forget")),
    )
    def disturb(self, worker: int, number: int, how: str) -> None:
        model = self.workers[worker]
        frames = model.frames
        if how == "cut":
            model.subscription = None
        elif how == "forget":
            self.index.forget(model.url)
        elif number < len(frames):
            if how == "lose":
                del frames[number]
            elif how == "double":
                frames.insert(number, frames[number])
            else:
                frames.append(frames.pop(number))

    @rule(worker=st.integers(0, 2))
    def deliver(self, worker: int) -> None:
        self.listen(self.workers[worker])

    @rule(at_most=st.integers(1, 9))
    def sweep(self, at_most: int) -> None:
        self.index.sweep(at_most)

    def listen(self, model: CacheModel) -> None:
        """As the follower does."""
        while True:
            try:
                if model.subscription is None:
                    raise Gap("the stream ended")
                read(model)
                return
            except Gap:
                if model.subscription is not None:
                    model.subscription.close()
                model.subscription = self.index.subscribe(model.url)
                model.snapshot()

    @invariant()
    def the_steady_one_is_known_but_for_what_it_has_not_said(self) -> None:
        steady = self.workers[0]
        if not self.expectations:
            steady.tell()
            read(steady)
            self.check(steady)

    def check(self, model: CacheModel) -> None:
        for prompt in PROMPTS:
            for salt in SALTS:
                found = self.index.match(PromptKeys(salt, prompt)).get(model.url, 0)
                assert found == model.cached_tokens(prompt, salt), (model.url, prompt, salt)

    def teardown(self) -> None:
        """When all is quiet and heartbeats have come, the index is the workers' truth, and holds nothing else."""
        for expectation in self.expectations:
            expectation.retract()
        for model in self.workers:
            model.tell()
            self.listen(model)
            model.tell()
            self.listen(model)
            self.check(model)
        while self.index.sweep(100):
            pass
        names = {key for model in self.workers for key in model.subscription._mirror.known.values()}
        assert set(self.index._holders.masks) == names


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=150, stateful_step_count=60)
