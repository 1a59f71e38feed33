"""A prefill worker behind a network that loses every packet in silence: all of its traffic, or only the reads."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from penstock.engine.config import EngineConfig
from penstock.hop import new_session, open_hop
from penstock.protocol import Done, Error, GenerateRequest, Sample, SamplingParams
from tests.e2e.client import random_prompt
from tests.e2e.conftest import Deploy, need_wire
from tests.e2e.deployment import Worker
from tests.e2e.faults import FREEZE_S, PROMPT_TOKENS, Fault, Scene, scene
from tests.e2e.island import Island, island
from tests.e2e.processes import eventually
from tests.e2e.proxy import Step
from tests.e2e.stopwatch import Stopwatch

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
def cluster(request: pytest.FixtureRequest, deploy_for_module: Deploy, remote: Island) -> Iterator[Scene]:
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

    with scene(deploy_for_module, wire=request.param, engine={"max_step_tokens": 32}, place=place) as made:
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
    fault, victim, readers = loss(remote, READS), cluster.deployment.prefill[0], cluster.deployment.decode
    cluster.strike(victim, fault, Step.LAST).assert_good(fault.limit_s)
    for reader in readers:
        pair_up(reader, victim)  # loses time here if none of those streams did
        stopwatch = Stopwatch()
        assert pair_up(reader, victim) == "transfer_failed"
        assert stopwatch.elapsed_s < READ_TIMEOUT_S / 3
    assert sum(reader.metric("penstock_silent_peers") for reader in readers) == len(readers)
    rounds = [cluster.again() for _ in range(2)]
    print(*rounds, sep="\n")
    for outcome in rounds:
        outcome.assert_good(READ_TIMEOUT_S)
        assert outcome.num_replaced > 0, "the victim was never chosen: this test proves nothing"
    assert rounds[1].num_quarantined <= rounds[0].num_quarantined
    cluster.recover(victim, fault)
    for reader in readers:
        eventually(partial(can_read, reader, victim), "a read of the worker that was cut off", 5.0)
    assert sum(reader.metric("penstock_silent_peers") for reader in readers) == 0


def can_read(reader: Worker, owner: Worker) -> bool:
    return pair_up(reader, owner) == "done"


def pair_up(reader: Worker, owner: Worker) -> str:
    """Has `reader` answer a new prompt that `owner` computes: "done", or the code of the error."""
    request = GenerateRequest(
        request_id="pair",
        prompt=tuple(random_prompt(PROMPT_TOKENS, seed=time.monotonic_ns() % 2**60)),
        sampling=SamplingParams(max_tokens=4),
        samples=(Sample(0, 1),),
        prefill=owner.url,
    )

    async def ask() -> str:
        async with new_session() as session, open_hop(session, f"{reader.url}/generate", request) as hop:
            async for frame in hop.frames():
                if isinstance(frame, Done | Error):
                    return "done" if isinstance(frame, Done) else frame.code
        raise AssertionError("no last frame")

    return asyncio.run(ask())
