"""P freezes in mid-read, D gives up and lets others have the memory, P thaws and its bytes land: 0 wrong tokens.

With P as prefill worker the request fails, and is the router's to place again; with P as source D computes it.
"""

import pytest
from msgspec.structs import replace

from tests.e2e.conftest import need_wire
from tests.e2e.deployment import WIRES
from tests.e2e.engine_node import engines
from tests.engine.harness import make_engine, prompt, request, run

pytestmark = pytest.mark.slow

NUM_BLOCKS = 18
"""Of D: two others (9 blocks each) fit only where the victim (8 blocks) was."""
OTHERS = [request(f"other-{index}", prompt(60, seed=20 + index), max_tokens=12) for index in range(2)]


def late_reads(wire: str, kind: str, *, quarantine: bool) -> tuple[int, int]:
    """(answers with wrong tokens, blocks in quarantine when the pool was refilled)."""
    need_wire(wire)
    transport, environment = WIRES[wire]
    with engines() as start:
        prefill = start(transport, "prefill", environment, num_blocks=64)
        decode = start(transport, "decode", environment, num_blocks=NUM_BLOCKS, quarantine=quarantine)
        warm = request("warm", prompt(20, seed=1))
        decode.call("pull", prefill.peer, warm, prefill.call("prefill", warm))
        assert decode.call("run_until_ended", "warm") == "done"

        victim = request("victim", prompt(64, seed=2))  # full blocks: no NaN moves
        tickets = prefill.call("prefill", victim)
        if kind == "source":
            wanted = decode.call("want", replace(victim, source="there"))
            tickets = prefill.call("lookup", wanted)
            prefill.freeze()
            decode.call("read", prefill.peer, wanted, tickets)
            assert decode.call("run_until_ended", "victim") == "done"
        else:
            prefill.freeze()
            decode.call("pull", prefill.peer, victim, tickets)
            assert decode.call("run_until_ended", "victim") == "prefill_lost"
        quarantined = decode.call("late_blocks")
        assert decode.call("num_free") == NUM_BLOCKS - quarantined

        decode.call("begin", OTHERS, 4)
        prefill.thaw()
        decode.call("let_late_reads_land")
        found = decode.call("finish", [other.request_id for other in OTHERS])
        assert decode.call("num_free") == NUM_BLOCKS
    expected = run(make_engine(), *OTHERS)
    return sum(tokens != expected[name].tokens[0] for name, tokens in found.items()), quarantined


@pytest.mark.parametrize(("kind", "num_blocks"), [("prefill", 8), ("source", 7)])
@pytest.mark.parametrize("wire", ["ucx-tcp", "tcp"])
def test_late_bytes_reach_nobody(wire: str, kind: str, num_blocks: int) -> None:
    wrong, quarantined = late_reads(wire, kind, quarantine=True)
    assert wrong == 0
    assert quarantined == num_blocks, "no read was in flight: this test proves nothing"


@pytest.mark.parametrize("kind", ["prefill", "source"])
def test_without_quarantine_late_bytes_give_wrong_tokens(kind: str) -> None:
    wrong, quarantined = late_reads("ucx-tcp", kind, quarantine=False)
    assert quarantined == 0
    assert wrong > 0
