"""Mooncake's Algorithm 1: 0.1 s per 1,000 tokens and 10 ms per chunk of 1,000; KV moves at 10 ms per 1,000 tokens."""

import pytest

from penstock.router.baselines.mooncake import MooncakeAlgorithm1
from penstock.router.policy import Placement
from tests.router.baselines.pools import LINK, cluster, decode, prefill, request

LINKS = {"node": LINK, "network": LINK}


@pytest.mark.parametrize(
    ("cached", "queued", "expected"),
    [
        # p0 computes 2,000 of 4,000 tokens: 0.22 s after its queue. p1 has more than half of what p0 has, and computes.
        pytest.param({"p0": 2000, "p1": 1000}, 0, Placement("d", "p0"), id="the longest match is idle: 0.22 s"),
        pytest.param({"p0": 2000, "p1": 1000}, 1100, Placement("d", "p1"), id="0.34 s there"),
        pytest.param({"p0": 2000, "p1": 1000}, 500, Placement("d", "p0"), id="0.28 s there, 0.33 s here"),
        # With nothing cached p1 copies the 2,000 in 0.02 s and computes as much as p0: 0.24 s.
        pytest.param({"p0": 2000}, 100, Placement("d", "p0"), id="p0 with 0.02 s of queue, equal: no copy"),
        pytest.param({"p0": 2000}, 200, Placement("d", "p1", "p0"), id="p0 with 0.03 s of queue: the prefix is copied"),
    ],
)
def test_the_shortest_time_to_first_token(cached: dict[str, int], queued: int, expected: Placement) -> None:
    workers = cluster(prefill("p0", prefill_tokens=queued), prefill("p1"), decode("d"), links=LINKS)
    assert MooncakeAlgorithm1().choose(request(4000, **cached), workers) == expected


def test_the_decode_worker_with_the_shortest_step() -> None:
    # 10 ms + 1 ms per sequence + 1 ms per 1,000 tokens of KV: 10 + 3 + 21 against 10 + 9 + 11.
    workers = cluster(
        prefill("p"), decode("d0", streams=2, context_tokens=20_000), decode("d1", streams=8, context_tokens=10_000)
    )
    assert MooncakeAlgorithm1().choose(request(1000), workers) == Placement("d1", "p")
