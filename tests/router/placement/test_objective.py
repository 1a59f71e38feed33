"""The choice is the one that costs fewest seconds, and the seconds are those that the page on placement explains."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.router.placement.costs import LinkCost, StepCost, attention_pairs
from penstock.router.placement.objective import Seconds
from penstock.router.policy import (
    ClusterSnapshot,
    LinkClass,
    Placement,
    PlacementRequest,
    Prediction,
    Role,
    WorkerState,
)

COST = StepCost(step_s=0.01, prefill_token_s=1e-4, prefill_pair_s=1e-9, decode_token_s=1e-5, context_token_s=1e-7)
LINKS: dict[LinkClass, LinkCost] = {"network": LinkCost(1e-3, 1e-5), "node": LinkCost(1e-4, 1e-6)}
POLICY = Seconds()


def worker(url: str, role: Role, **fields: object) -> WorkerState:
    return WorkerState(url, role=role, node=url, cost=COST, **fields)  # type: ignore[arg-type]


def cluster(*workers: WorkerState, **fields: object) -> ClusterSnapshot:
    return ClusterSnapshot(
        prefill=tuple(each for each in workers if each.role == "prefill"),
        decode=tuple(each for each in workers if each.role == "decode"),
        links=LINKS,
        **fields,  # type: ignore[arg-type]
    )


def prediction(placement: Placement | None) -> Prediction:
    assert placement is not None
    assert placement.prediction is not None
    return placement.prediction


def queued(tokens: int, prompts: int = 1) -> dict[str, object]:
    """Fields of a worker with so many tokens to compute, as first computing the last of them."""
    return {
        "prompts": prompts,
        "prefill_tokens": tokens,
        "prefill_pairs": attention_pairs(tokens),
        "head_tokens": tokens,
        "head_pairs": attention_pairs(tokens),
    }


BUSY = {"streams": 20, "context_tokens": 40_000, "output_tokens": 2000}


def test_an_idle_decode_worker_needs_no_hand_over() -> None:
    assert POLICY.choose(PlacementRequest(1000), cluster(worker("p", "prefill"), worker("d", "decode"))) == Placement(
        "d"
    )


def test_streams_are_worth_a_hand_over() -> None:
    scene = cluster(worker("p", "prefill"), worker("d", "decode", **BUSY))
    assert POLICY.choose(PlacementRequest(1000), scene) == Placement("d", "p")


def test_streams_that_go_behind_are_not_worth_a_hand_over() -> None:
    scene = cluster(worker("p", "prefill"), worker("d", "decode", **BUSY, streams_behind=BUSY["streams"]))
    assert POLICY.choose(PlacementRequest(1000), scene) == Placement("d")


def test_what_goes_behind_loses_nothing_that_counts_but_stalls_the_answer() -> None:
    request, placement = PlacementRequest(1000), Placement("d")
    seconds = []
    for tokens in (0, 20_000):
        busy = worker("d", "decode", **BUSY, streams_behind=BUSY["streams"], tokens_behind=tokens)
        prediction = POLICY.predict(request, cluster(busy), placement)
        assert prediction is not None
        assert (prediction.others_s, prediction.queue_s) == (0, 0)
        seconds.append(prediction.decode_s)
    assert seconds[1] - seconds[0] == pytest.approx(20_000 * COST.prefill_token_s)


def test_a_short_prompt_does_not_hold_up_streams() -> None:
    scene = cluster(worker("p", "prefill"), worker("d", "decode", **BUSY), pair_s=0.02, alone_s=0.01)
    assert POLICY.choose(PlacementRequest(3), scene) == Placement("d")


def test_a_long_queue_is_avoided_even_at_the_price_of_stalled_streams() -> None:
    scene = cluster(worker("p", "prefill", **queued(400_000, 8)), worker("d", "decode", **BUSY))
    assert POLICY.choose(PlacementRequest(1000), scene) == Placement("d")


def test_cached_tokens_are_worth_what_computing_them_takes() -> None:
    """8,000 cached tokens are worth about 0.83 s: they attract over a queue of 0.4 s, not over one of 1.7 s."""
    request = PlacementRequest(10_000, {"p1": 8000})
    busy = worker("d", "decode", streams=200, context_tokens=400_000, output_tokens=20_000)
    for tokens, expected in ((4000, "p1"), (16_000, "p2")):
        scene = cluster(worker("p1", "prefill", **queued(tokens)), worker("p2", "prefill"), busy)
        placement = Seconds(pulls=False).choose(request, scene)
        assert placement is not None
        assert placement.prefill == expected


def test_those_who_wait_in_the_router_wait_for_this_prompt_too() -> None:
    """One second saved for the request alone is worth less than half a second of work saved while many wait."""
    warm, cold = worker("p1", "prefill", **queued(8000)), worker("p2", "prefill")
    request = PlacementRequest(6000, {"p1": 4000})
    scene = cluster(warm, cold, worker("d", "decode", **BUSY))
    pairs = Seconds(pulls=False)
    nobody, many = pairs.choose(request, scene), pairs.choose(request, dataclasses.replace(scene, waiting=20))
    assert (nobody, many) == (Placement("d", "p2"), Placement("d", "p1"))


@pytest.mark.parametrize("num_honest", [1, 3])
def test_one_worker_that_claims_a_huge_queue_does_not_make_its_pool_look_busy(num_honest: int) -> None:
    liar = worker("liar", "prefill", prompts=10**6, prefill_tokens=10**12)
    honest = [worker(f"p{number}", "prefill") for number in range(num_honest)]
    scene = cluster(liar, *honest, worker("d", "decode", **BUSY))
    assert POLICY.choose(PlacementRequest(1000), scene) == Placement("d", "p0")


def test_time_that_has_passed_shortens_the_queue() -> None:
    scene = cluster(worker("p", "prefill", **queued(10_000)), worker("d", "decode", **BUSY))

    def queue_s(now_s: float) -> float:
        at = dataclasses.replace(scene, now_s=now_s)
        found = POLICY.predict(PlacementRequest(100), at, Placement("d", "p"))
        assert found is not None
        return found.queue_s

    assert queue_s(0.5) == pytest.approx(queue_s(0.0) - 0.5)
    assert queue_s(100.0) == 0


def test_a_hot_prefix_is_pulled_where_that_beats_computing_it() -> None:
    request = PlacementRequest(10_000, {"p1": 9000})
    scene = cluster(
        worker("p1", "prefill", **queued(30_000, 3)), worker("p2", "prefill"), worker("d", "decode", **BUSY)
    )
    placement = POLICY.choose(request, scene)
    assert placement == Placement("d", "p2", source="p1")
    assert prediction(placement).pull_s == pytest.approx(1e-3 + 9000 * 1e-5)
    assert prediction(placement).cached_tokens == 9000
    slow = dataclasses.replace(scene, links={"network": LinkCost(1e-3, 1e-2)})
    slow_choice = POLICY.choose(request, slow)
    assert slow_choice is not None
    assert slow_choice.source is None


def test_nobody_pulls_what_is_still_to_be_computed() -> None:
    """The third worker has less of the prompt, but has it now."""
    request = PlacementRequest(10_000, {"p1": 9000, "p3": 5000}, pending=frozenset(["p1"]))
    scene = cluster(
        worker("p1", "prefill", **queued(60_000, 6)),
        worker("p2", "prefill"),
        worker("p3", "prefill", **queued(60_000, 6)),
        worker("d", "decode", **BUSY),
    )
    placement = POLICY.choose(request, scene)
    assert placement == Placement("d", "p2", source="p3")
    assert prediction(placement).cached_tokens == 5000
    assert placement is not None
    assert placement.relies_on(request) == ("p3", 5000)
    assert Placement("d", "p1").relies_on(request) == ("p1", 9000), "whoever computes it waits for it"


def test_full_memory_is_waited_for_or_avoided() -> None:
    memory = {"num_tokens": 100_000, "free_tokens": 500}
    full = worker("d1", "decode", streams=20, context_tokens=40_000, output_tokens=20_000, **memory)
    busier = worker("d2", "decode", streams=25, context_tokens=60_000, output_tokens=2500)
    request = PlacementRequest(8000)
    assert POLICY.choose(request, cluster(worker("p", "prefill"), full, busier)) == Placement("d2", "p")
    alone = POLICY.choose(request, cluster(worker("p", "prefill"), full))
    assert prediction(alone).admit_s > 0


def test_a_prompt_that_fits_nowhere_still_gets_an_answer() -> None:
    tiny = worker("d", "decode", num_tokens=100, free_tokens=100)
    assert POLICY.choose(PlacementRequest(1000), cluster(tiny)) == Placement("d")


def test_evicting_what_is_reused_costs() -> None:
    memory = {"num_tokens": 50_000, "free_tokens": 50_000}
    full, empty = worker("d1", "decode", **memory, evictable_tokens=50_000), worker("d2", "decode", **memory)
    request = PlacementRequest(1000, output_tokens=100)
    assert POLICY.choose(request, cluster(full, empty, reuse=0.5)) == Placement("d2")
    found = POLICY.predict(request, cluster(full, empty, reuse=0.5), Placement("d1"))
    assert found is not None
    assert found.evict_s == pytest.approx(1100 * 0.5 * 1e-4)


def test_nobody_to_choose() -> None:
    assert POLICY.choose(PlacementRequest(10), ClusterSnapshot()) is None
    assert POLICY.choose(PlacementRequest(10), cluster(worker("p", "prefill"))) is None
    gone = PlacementRequest(10, excluded=frozenset("d"))
    assert POLICY.choose(gone, cluster(worker("d", "decode"))) is None
    assert POLICY.predict(gone, cluster(worker("d", "decode")), Placement("elsewhere")) is None


@st.composite
def scenes(draw: st.DrawFn) -> tuple[PlacementRequest, ClusterSnapshot]:
    workers = []
    for index in range(draw(st.integers(1, 7))):
        streams, tokens = draw(st.integers(0, 60)), draw(st.integers(0, 50_000))
        capacity = draw(st.sampled_from([0, 20_000, 200_000]))
        free = draw(st.integers(0, capacity))
        fields = queued(tokens, draw(st.integers(1, 9))) if tokens else {}
        workers.append(
            WorkerState(
                f"w{index}",
                role=draw(st.sampled_from(["prefill", "decode"])),
                revision=draw(st.sampled_from(["r1", "r2"])),
                node=draw(st.sampled_from(["n1", "n2"])),
                streams=streams,
                context_tokens=streams * draw(st.integers(1, 5000)),
                output_tokens=streams * draw(st.integers(1, 500)),
                num_tokens=capacity,
                free_tokens=free,
                evictable_tokens=draw(st.integers(0, free)),
                cost=COST.times(draw(st.sampled_from([0.5, 1.0, 3.0]))),
                **fields,
            )
        )
    urls = [each.url for each in workers]
    prompt = draw(st.integers(1, 40_000))
    cached = draw(st.dictionaries(st.sampled_from(urls), st.integers(0, prompt)))
    request = PlacementRequest(
        prompt,
        cached,
        draw(st.frozensets(st.sampled_from(urls), max_size=3)),
        draw(st.integers(1, 500)),
        draw(st.integers(1, 3)),
        pending=draw(st.frozensets(st.sampled_from(urls))),
    )
    now, reuse = draw(st.floats(0, 10)), draw(st.floats(0, 2))
    return request, cluster(*workers, now_s=now, reuse=reuse, pair_s=0.02, alone_s=0.01)


@settings(max_examples=300)
@given(scenes())
def test_looking_best_first_misses_nothing(scene: tuple[PlacementRequest, ClusterSnapshot]) -> None:
    request, snapshot = scene
    candidates = POLICY.candidates(request, snapshot)
    chosen = POLICY.choose(request, snapshot)
    assert (chosen is None) == (not candidates)
    if chosen is not None:
        assert prediction(chosen).total_s == pytest.approx(prediction(candidates[0]).total_s)
        assert POLICY.predict(request, snapshot, chosen) == chosen.prediction


@given(scenes())
def test_pairs_are_of_one_revision_and_nobody_is_excluded(scene: tuple[PlacementRequest, ClusterSnapshot]) -> None:
    request, snapshot = scene
    workers = {each.url: each for each in (*snapshot.prefill, *snapshot.decode)}
    for candidate in POLICY.candidates(request, snapshot):
        used = [url for url in (candidate.decode, candidate.prefill, candidate.source) if url]
        assert not request.excluded.intersection(used)
        assert len({workers[url].revision for url in used}) == 1
        assert workers[candidate.decode].role == "decode"
        parts = dataclasses.astuple(prediction(candidate))
        assert min(parts) >= 0
        assert prediction(candidate).cached_tokens < request.prompt_tokens
