"""SGLang's cache-aware policy at its thresholds."""

import pytest

from penstock.router.baselines.sglang import CacheAware
from tests.router.baselines.pools import cluster, decode, prefill, request


@pytest.mark.parametrize(
    ("cached", "loads", "expected"),
    [
        pytest.param(310, (5, 0), "p0", id="more than 30 % cached: the longest match"),
        pytest.param(300, (5, 0), "p1", id="not more than 30 %: the least loaded"),
        pytest.param(1000, (64, 0), "p0", id="64 requests more are still balanced"),
        pytest.param(1000, (65, 0), "p1", id="65 more are not"),
        pytest.param(1000, (300, 200), "p0", id="100 more, but not 1.5 times as many"),
        pytest.param(1000, (301, 200), "p1", id="1.505 times as many"),
    ],
)
def test_prefill(cached: int, loads: tuple[int, int], expected: str) -> None:
    workers = cluster(prefill("p0", prompts=loads[0]), prefill("p1", prompts=loads[1]), decode("d"))
    placement = CacheAware().choose(request(1000, p0=cached), workers)
    assert placement is not None
    assert placement.prefill == expected
