"""Round robin, least loaded, random of two."""

from collections import Counter

from penstock.router.baselines.least_loaded import LeastLoaded
from penstock.router.baselines.random_of_two import RandomOfTwo
from penstock.router.baselines.round_robin import RoundRobin
from penstock.router.policy import Placement
from tests.router.baselines.pools import cluster, decode, prefill, request


def test_round_robin_takes_each_pool_in_turn() -> None:
    policy, workers = RoundRobin(), cluster(prefill("p0"), prefill("p1"), decode("d0"), decode("d1"), decode("d2"))
    chosen = [policy.choose(request(1000), workers) for _ in range(4)]
    assert chosen == [Placement("d0", "p0"), Placement("d1", "p1"), Placement("d2", "p0"), Placement("d0", "p1")]


def test_least_loaded_counts_requests_not_tokens() -> None:
    workers = cluster(
        prefill("p0", prompts=2, prefill_tokens=10),
        prefill("p1", prompts=1, prefill_tokens=90_000),
        decode("d0", streams=3),
        decode("d1", streams=1, prompts=1),
    )
    assert LeastLoaded().choose(request(1000), workers) == Placement("d1", "p1")


def test_random_of_two_never_takes_the_most_loaded_of_three_and_sometimes_the_second() -> None:
    policy = RandomOfTwo(seed=7)
    workers = cluster(*(prefill(f"p{load}", prompts=load) for load in range(3)), decode("d"))
    chosen = Counter(placement.prefill for _ in range(300) if (placement := policy.choose(request(9), workers)))
    # Of three pairs, two hold p0; the third is p1 and p2.
    assert chosen["p2"] == 0
    assert 170 < chosen["p0"] < 230
    assert chosen["p0"] + chosen["p1"] == 300


def test_random_of_two_is_the_same_for_the_same_seed() -> None:
    workers = cluster(*(prefill(f"p{number}") for number in range(8)), *(decode(f"d{number}") for number in range(8)))
    first, second, other = RandomOfTwo(1), RandomOfTwo(1), RandomOfTwo(2)
    choices = [[policy.choose(request(9), workers) for _ in range(20)] for policy in (first, second, other)]
    assert choices[0] == choices[1] != choices[2]
