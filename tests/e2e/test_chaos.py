"""Streams in a storm: processes are killed, frozen and cut off in turn, and no client sees a wrong token.

A small one; `python -m bench.chaos` runs it at full size, with the demonstration model.
"""

from pathlib import Path

import pytest

from penstock.protocol import SILENT_S
from tests.e2e.chaos import Cut, Freeze, Kill, LoseRedis, Outcome, Size, run_chaos, shared_through
from tests.e2e.conftest import Deploy, need_wire
from tests.e2e.deployment import DEFAULT_POLICY, metrics_of
from tests.e2e.island import archipelago
from tests.e2e.stopwatch import Stopwatch
from tests.redis_server import running_redis

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # slow machines; a stream that hangs is told of after 30 s

SIZE = Size(streams=240, concurrency=24, max_tokens=128, distinct=24, limit_s=45.0)
SEVERAL_STRIKES = Size(streams=400, concurrency=24, max_tokens=128, distinct=24, limit_s=45.0)
"""Streams that begin together end together: a worker may well have none when it is struck, but not each time."""
ONE_STRIKE = Size(streams=120, concurrency=24, max_tokens=128, distinct=24, limit_s=45.0)


def assert_right(outcome: Outcome) -> None:
    print(outcome)  # pytest -rP shows it
    assert outcome.counts == {"right": len(outcome.replies)}, outcome
    assert len(outcome.replies) >= 2 * SIZE.concurrency


def assert_good(outcome: Outcome, num_strikes: int = 2) -> None:
    assert_right(outcome)
    assert len(outcome.away_s) >= num_strikes
    assert outcome.num_replaced > 0, "no stream felt it: this test proves nothing"


def test_workers_frozen_in_turn(deploy: Deploy) -> None:
    need_wire("ucx-tcp")
    cluster = deploy(prefill=2, decode=3, wire="ucx-tcp")
    order = [cluster.decode[0], cluster.prefill[0], cluster.decode[1], cluster.prefill[1], cluster.decode[2]]
    assert_good(run_chaos(cluster, order, Freeze(), SIZE))
    cluster.assert_quiet()


def test_workers_killed_in_turn_where_requests_are_placed_by_default(deploy: Deploy) -> None:
    """By seconds: prompts are read from whoever has them, and so is what a dead worker's streams need."""
    need_wire("cma")
    cluster = deploy(prefill=2, decode=3, wire="cma", router=DEFAULT_POLICY)
    order = [cluster.decode[0], cluster.prefill[0], cluster.decode[1], cluster.prefill[1], cluster.decode[2]]
    outcome = run_chaos(cluster, order, Kill(), SEVERAL_STRIKES)
    assert_good(outcome)
    assert outcome.num_sourced_blocks > 0
    cluster.assert_quiet()


def test_workers_cut_off_in_turn(deploy: Deploy) -> None:
    need_wire("ucx-tcp")
    with archipelago([f"{role}-{index}" for role in ("prefill", "decode") for index in range(2)]) as islands:
        fault = Cut(islands)
        cluster = deploy(prefill=2, decode=2, wire="ucx-tcp", place=fault.place)
        order = [cluster.decode[0], cluster.prefill[0], cluster.decode[1], cluster.prefill[1]]
        assert_good(run_chaos(cluster, order, fault, SIZE))
        cluster.assert_quiet()


def test_one_of_two_routers_killed(deploy: Deploy) -> None:
    """Its streams are reset, and their clients ask the other one."""
    cluster = deploy(prefill=1, decode=2, routers=2)
    outcome = run_chaos(cluster, cluster.routers[:1], Kill(), ONE_STRIKE)
    assert_right(outcome)
    assert outcome.num_asked_again > 0
    cluster.assert_quiet()


@pytest.mark.redis
def test_redis_lost_and_back_empty_again_and_again(deploy: Deploy, tmp_path: Path) -> None:
    """No stream feels it: none is cut, and none is placed again while the machine runs."""
    with running_redis(tmp_path) as redis:
        cluster = deploy(prefill=1, decode=2, routers=2, router=shared_through(redis, tmp_path))
        stopwatch = Stopwatch()
        outcome = run_chaos(cluster, cluster.routers[:1], LoseRedis(redis), SIZE)
        assert_right(outcome)
        assert outcome.num_asked_again == 0
        stood_still = min(stopwatch.stolen_s, outcome.longest_gap_s) > SILENT_S  # as long as makes a worker lost
        assert outcome.num_replaced == 0 or stood_still
        for router in cluster.routers:
            assert metrics_of(router.url)["penstock_router_redis_errors_total"] > 0, "it did not feel it either"
        cluster.assert_quiet()
