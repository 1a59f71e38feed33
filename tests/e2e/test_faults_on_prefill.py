"""A prefill worker dies, freezes or falls silent, at every step of the protocol: all streams go on, and rightly."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Deploy, need_wire
from tests.e2e.faults import FAULTS, Fault, Scene, scene
from tests.e2e.proxy import Step

pytestmark = pytest.mark.slow

STEPS = {
    "before-accepted": Step.REQUEST,
    "before-the-first-ticket": Step.ACCEPTED,
    "between-tickets": Step.TICKET,
    "while-decode-reads": Step.LAST,
    "while-decoding": Step.RELEASED,
}
PLACES = [("cma", step) for step in STEPS] + [("ucx-tcp", step) for step in ("between-tickets", "while-decode-reads")]
"""What happens before the first read and after the last is the same over every wire."""


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, deploy_for_module: Deploy) -> Iterator[Scene]:
    need_wire(request.param)
    with scene(deploy_for_module, wire=request.param, engine={"max_step_tokens": 32}) as made:
        yield made


@pytest.mark.parametrize(("cluster", "step"), PLACES, indirect=["cluster"], scope="module")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_streams_survive(cluster: Scene, fault: Fault, step: str) -> None:
    victim = cluster.deployment.prefill[0]
    outcome = cluster.strike(victim, fault, STEPS[step])
    cluster.recover(victim, fault)
    print(outcome)  # pytest -rP shows it
    outcome.assert_good(fault.limit_s)
    if STEPS[step] is not Step.RELEASED:
        assert outcome.num_replaced > 0
