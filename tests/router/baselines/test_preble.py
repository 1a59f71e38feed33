"""Preble's E2: 1,000 tokens of a prompt are 0.1 s of load (and a step's 10 ms)."""

from penstock.router.baselines.preble import PrebleE2
from penstock.router.policy import ClusterSnapshot
from tests.router.baselines.pools import cluster, decode, prefill, request


def pair(now_s: float = 0.0) -> ClusterSnapshot:
    return cluster(prefill("p0"), prefill("p1"), decode("d"), now_s=now_s)


def test_more_cached_than_not_is_exploited_else_load_and_prefill_decide() -> None:
    policy = PrebleE2()
    assert place(policy, 1000, pair(), p1=501) == "p1"
    assert place(policy, 1000, pair(), p1=500) == "p0"  # 0.11 s there; here 0.06 s of load and 0.06 s of prefill


def test_explored_is_the_worker_with_the_least_work_placed_on_it() -> None:
    policy = PrebleE2()
    assert [place(policy, tokens, pair()) for tokens in (5000, 1000, 1000, 4000, 100)] == ["p0", "p1", "p1", "p1", "p0"]


def test_load_is_forgotten_after_the_window() -> None:
    policy = PrebleE2(window_s=180)
    assert place(policy, 5000, pair(now_s=0)) == "p0"
    assert place(policy, 100, pair(now_s=180)) == "p1"
    assert place(policy, 100, pair(now_s=181)) == "p0"


def test_a_worker_with_twice_the_load_is_not_exploited() -> None:
    policy = PrebleE2(balance=2)
    assert place(policy, 9000, pair()) == "p0"  # 0.99 s of load
    assert place(policy, 1000, pair(), p0=900) == "p1"  # none here, and 0.11 s of prefill


def test_eviction_counts_as_often_as_blocks_are_reused() -> None:
    full = prefill("p0", free_tokens=50_000, evictable_tokens=50_000)
    empty = prefill("p1", free_tokens=50_000, prefill_tokens=0)

    def chosen(reuse: float) -> str | None:
        policy = PrebleE2()
        workers = cluster(full, empty, decode("d"), reuse=reuse)
        place(policy, 2000, cluster(empty, decode("d")))  # 0.22 s of load on p1
        return place(policy, 4000, workers)

    assert chosen(reuse=0.4) == "p0"  # 0.16 s of eviction
    assert chosen(reuse=0.6) == "p1"  # 0.24 s


def place(policy: PrebleE2, tokens: int, workers: ClusterSnapshot, **cached: int) -> str | None:
    placement = policy.choose(request(tokens, **cached), workers)
    return placement.prefill if placement else None
