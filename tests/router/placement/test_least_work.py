"""Least work, tested as the pure function it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.router.placement.least_work import LeastWork
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, WorkerState

POLICY = LeastWork(min_prefill_tokens=16)


def cluster(prefill: dict[str, int], decode: dict[str, int]) -> ClusterSnapshot:
    """Workers by name with their prompt tokens in flight."""
    return ClusterSnapshot(
        prefill=tuple(WorkerState(url, tokens) for url, tokens in prefill.items()),
        decode=tuple(WorkerState(url, output_tokens=tokens) for url, tokens in decode.items()),
    )


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(PlacementRequest(1000), Placement("d2", "p1"), id="least work on each side"),
        pytest.param(PlacementRequest(15), Placement("d2"), id="a short prompt needs no hand-over"),
        pytest.param(PlacementRequest(16), Placement("d2", "p1"), id="one block does"),
        pytest.param(
            PlacementRequest(1000, {"d1": 992}), Placement("d1"), id="mostly cached on the busier decode worker"
        ),
        pytest.param(
            PlacementRequest(1000, {"p2": 512}), Placement("d2", "p2"), id="cached on the busier prefill worker"
        ),
        pytest.param(
            PlacementRequest(1000, {"d2": 800}), Placement("d2"), id="prefill would compute five times as much"
        ),
        pytest.param(
            PlacementRequest(1000, {"d2": 800, "p1": 600}),
            Placement("d2", "p1"),
            id="prefill would compute twice as much",
        ),
        pytest.param(PlacementRequest(1000, excluded=frozenset(["p1"])), Placement("d2", "p2"), id="failed prefill"),
        pytest.param(PlacementRequest(1000, excluded=frozenset(["d2"])), Placement("d1", "p1"), id="failed decode"),
        pytest.param(
            PlacementRequest(1000, excluded=frozenset(["p1", "p2"])), Placement("d2"), id="no prefill worker left"
        ),
        pytest.param(PlacementRequest(1000, excluded=frozenset(["d1", "d2"])), None, id="no decode worker left"),
    ],
)
def test_the_choice(request_: PlacementRequest, expected: Placement | None) -> None:
    assert POLICY.choose(request_, cluster({"p1": 100, "p2": 400}, {"d1": 300, "d2": 50})) == expected


def test_nobody_to_choose() -> None:
    assert POLICY.choose(PlacementRequest(10), ClusterSnapshot()) is None
    assert POLICY.choose(PlacementRequest(1000), cluster({"p": 0}, {})) is None


@given(
    prompt=st.integers(1, 5000),
    loads=st.lists(st.integers(0, 10_000), min_size=6, max_size=6),
    excluded=st.frozensets(st.sampled_from(["p0", "p1", "p2", "d0", "d1", "d2"])),
)
def test_an_excluded_worker_is_never_chosen(prompt: int, loads: list[int], excluded: frozenset[str]) -> None:
    snapshot = cluster({f"p{i}": loads[i] for i in range(3)}, {f"d{i}": loads[3 + i] for i in range(3)})
    placement = POLICY.choose(PlacementRequest(prompt, excluded=excluded), snapshot)
    if placement is None:
        assert {"d0", "d1", "d2"} <= excluded
    else:
        assert placement.decode not in excluded
        assert placement.prefill not in excluded


@given(
    revisions=st.lists(st.sampled_from(["r1", "r2", "r3"]), min_size=2, max_size=8),
    prompt=st.integers(1, 2000),
    loads=st.lists(st.integers(0, 5000), min_size=8, max_size=8),
)
def test_only_workers_of_one_revision_are_paired(revisions: list[str], prompt: int, loads: list[int]) -> None:
    workers = [
        WorkerState(f"w{index}", load, load, revision)
        for index, (revision, load) in enumerate(zip(revisions, loads, strict=False))
    ]
    half = len(workers) // 2
    placement = POLICY.choose(PlacementRequest(prompt), ClusterSnapshot(tuple(workers[:half]), tuple(workers[half:])))
    assert placement is not None
    revision_of = {worker.url: worker.revision for worker in workers}
    if placement.prefill is not None:
        assert revision_of[placement.prefill] == revision_of[placement.decode]
