"""llm-d's scorers and its affinity filter."""

import pytest

from penstock.router.baselines.llm_d import AffinityFilter, WeightedScorers
from penstock.router.policy import Placement
from tests.router.baselines.pools import cluster, decode, prefill, request


@pytest.mark.parametrize(
    ("queues", "free", "expected"),
    [
        # p0 has 40 % of the prompt: 3 x 0.4 = 1.2 points.
        pytest.param((0, 0), (100_000, 100_000), "p0", id="cached: 1.2 + 2 + 2 against 0 + 2 + 2"),
        pytest.param((9, 0), (100_000, 100_000), "p1", id="the longest queue: 1.2 + 2 + 0 against 4"),
        pytest.param((0, 0), (45_000, 100_000), "p0", id="fuller: 1.2 + 0.9 + 2 against 4"),
        pytest.param((0, 0), (35_000, 100_000), "p1", id="fuller still: 1.2 + 0.7 + 2 against 4"),
    ],
)
def test_weighted_scorers(queues: tuple[int, int], free: tuple[int, int], expected: str) -> None:
    workers = cluster(
        prefill("p0", prompts=queues[0], free_tokens=free[0]),
        prefill("p1", prompts=queues[1], free_tokens=free[1]),
        decode("d"),
    )
    placement = WeightedScorers().choose(request(1000, p0=400), workers)
    assert placement is not None
    assert placement.prefill == expected


@pytest.mark.parametrize("policy", [WeightedScorers(), AffinityFilter()])
def test_fewer_than_16_uncached_tokens_run_on_the_decode_worker(policy: WeightedScorers | AffinityFilter) -> None:
    workers = cluster(prefill("p"), decode("d"))
    assert policy.choose(request(1000, d=985), workers) == Placement("d")
    assert policy.choose(request(1000, d=984), workers) == Placement("d", "p")


@pytest.mark.parametrize(
    ("cached", "queued", "expected"),
    [
        pytest.param(800, 90_000, "p0", id="80 % are sticky, whatever the queue"),
        pytest.param(799, 90_000, "p1", id="less is not: fewest uncached tokens"),
        # A chunk of 1,000 tokens takes 0.11 s: 9,091 tokens/s. 18 s are 163,636 tokens.
        pytest.param(800, 163_000, "p0", id="17.9 s longer"),
        pytest.param(800, 164_000, "p1", id="18.04 s longer: the filter lets all pass"),
    ],
)
def test_affinity_filter(cached: int, queued: int, expected: str) -> None:
    workers = cluster(prefill("p0", prefill_tokens=queued), prefill("p1"), decode("d"))
    placement = AffinityFilter().choose(request(1000, p0=cached), workers)
    assert placement is not None
    assert placement.prefill == expected


def test_among_decode_workers_the_filter_leaves_the_one_with_fewest_requests() -> None:
    workers = cluster(prefill("p"), decode("d0", streams=2), decode("d1", streams=1))
    assert AffinityFilter().choose(request(1000), workers) == Placement("d1", "p")
