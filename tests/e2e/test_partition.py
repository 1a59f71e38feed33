"""A prefill worker behind a network that loses every packet in silence: all of its traffic, or only the reads."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest

from penstock.engine.config import EngineConfig
from tests.e2e.conftest import Deploy, need_wire
from tests.e2e.faults import FREEZE_S, Fault, Scene, scene
from tests.e2e.island import Island, island
from tests.e2e.proxy import Step

pytestmark = pytest.mark.slow

READ_TIMEOUT_S = EngineConfig.transfer_timeout_s
"""What a request loses that waits for a read."""

CALLS, READS = "c", "r"
"""The wires: HTTP between the workers, and reads of blocks."""

STEPS = {
    "before-accepted": Step.REQUEST,
    "before-the-first-ticket": Step.ACCEPTED,
    "between-tickets": Step.TICKET,
    "while-decode-reads": Step.LAST,
    "while-decoding": Step.RELEASED,
}


@pytest.fixture(scope="module")
def remote() -> Iterator[Island]:
    with island(CALLS, READS) as made:
        yield made


@pytest.fixture(scope="module", params=["ucx-tcp", "tcp"])
def cluster(request: pytest.FixtureRequest, deploy: Deploy, remote: Island) -> Iterator[Scene]:
    """prefill-0 is on the island, everything else is not."""
    need_wire(request.param)

    def place(name: str) -> Mapping[str, Any]:
        on_island = name == "prefill-0"
        end = remote.there if on_island else remote.here
        return {
            "host": end(CALLS)[0] if on_island else "127.0.0.1",
            "transfer_host": end(READS)[0],
            "namespace": remote.namespace if on_island else "",
            "environment": {"UCX_NET_DEVICES": end(READS)[1]},
        }

    with scene(deploy, wire=request.param, engine={"max_step_tokens": 32}, place=place) as made:
        yield made


def loss(remote: Island, *wires: str) -> Fault:
    return Fault(
        "lost",
        begin=lambda _worker, _proxy: remote.partition(*wires),
        end=lambda _worker, _proxy: remote.heal(),
        limit_s=FREEZE_S,
    )


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("lost", ["all", "reads"])
def test_streams_survive(cluster: Scene, remote: Island, lost: str, step: str) -> None:
    wires = (CALLS, READS) if lost == "all" else (READS,)
    fault = loss(remote, *wires)
    victim = cluster.deployment.prefill[0]
    outcome = cluster.strike(victim, fault, STEPS[step])
    cluster.recover(victim, fault)
    print(outcome)  # pytest -rP shows it
    outcome.assert_good(fault.limit_s)
    assert outcome.num_replaced > 0
    if STEPS[step] is Step.LAST:
        assert outcome.num_quarantined > 0, "no read was under way"


def test_new_requests_lose_no_time_while_the_loss_of_reads_lasts(cluster: Scene, remote: Island) -> None:
    """The worker answers calls, so the router goes on choosing it; whoever could not read it refuses it at once."""
    fault, victim = loss(remote, READS), cluster.deployment.prefill[0]
    struck = cluster.strike(victim, fault, Step.LAST)
    struck.assert_good(fault.limit_s)
    rounds = [cluster.again() for _ in range(4)]
    print(*rounds, sep="\n")
    for outcome in rounds:
        outcome.assert_good(fault.limit_s)
        assert outcome.num_replaced > 0, "the victim was never chosen: this test proves nothing"
    slow = [outcome for outcome in rounds if max(outcome.silences) > READ_TIMEOUT_S]
    assert len(slow) <= 1, "one decode worker lost time when the fault came; the other one may, once"
    for before, after in pairwise([struck, *rounds]):
        assert after in slow or after.num_quarantined <= before.num_quarantined
    assert sum(one.metric("penstock_silent_peers") for one in cluster.deployment.decode) > 0
    cluster.recover(victim, fault)
    for _ in range(2):  # the first meeting finds out that reads work again
        cluster.again().assert_good(fault.limit_s)
    assert sum(one.metric("penstock_silent_peers") for one in cluster.deployment.decode) == 0
