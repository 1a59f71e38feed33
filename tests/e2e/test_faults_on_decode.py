"""A decode worker dies, freezes or falls silent: the router goes on with the same stream on another one."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Deploy, need_wire
from tests.e2e.faults import FAULTS, Fault, Scene, scene
from tests.e2e.proxy import Step

pytestmark = pytest.mark.slow

STEPS = {
    "before-accepted": (Step.REQUEST, 2),
    "while-reading-from-prefill": (Step.ACCEPTED, 3),
    "at-the-first-token": (Step.TOKENS, 1),
    "while-decoding": (Step.TOKENS, 60),
}
"""With how many calls, or frames of tokens, must have reached the step."""


@pytest.fixture(scope="module")
def cluster(deploy_for_module: Deploy) -> Iterator[Scene]:
    need_wire("ucx-tcp")
    with scene(deploy_for_module, wire="ucx-tcp", engine={"max_step_tokens": 32}) as made:
        yield made


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_streams_go_on_elsewhere(cluster: Scene, fault: Fault, step: str) -> None:
    victim = cluster.deployment.decode[0]
    outcome = cluster.strike(victim, fault, *STEPS[step])
    cluster.recover(victim, fault)
    print(outcome)  # pytest -rP shows it
    outcome.assert_good(fault.limit_s)
    assert outcome.num_replaced > 0
