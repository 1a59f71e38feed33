"""Which pairs of workers are probed; tests/e2e/test_probe.py moves real blocks."""

from penstock.router.policy import ClusterSnapshot, WorkerState
from penstock.router.probe import pairs_of


def workers(role: str, count: int, revision: str = "a") -> tuple[WorkerState, ...]:
    return tuple(WorkerState(f"http://{role}-{revision}-{index}", revision=revision) for index in range(count))


def test_every_worker_is_in_a_pair() -> None:
    for prefill, decode in ((1, 1), (2, 5), (5, 2)):
        pairs = pairs_of(ClusterSnapshot(workers("p", prefill), workers("d", decode)))
        assert len(pairs) == max(prefill, decode)
        assert len({pair[0].url for pair in pairs}) == prefill
        assert len({pair[1].url for pair in pairs}) == decode


def test_workers_of_different_revisions_are_not_paired() -> None:
    cluster = ClusterSnapshot(
        (*workers("p", 1, "a"), *workers("p", 1, "b")), (*workers("d", 2, "a"), *workers("d", 1, "c"))
    )
    assert [(p.revision, d.revision) for p, d in pairs_of(cluster)] == [("a", "a"), ("a", "a")]


def test_without_a_prefill_worker_there_is_no_pair() -> None:
    assert pairs_of(ClusterSnapshot((), workers("d", 2))) == []
