"""The example in docs/explanation/placement.md is what the code computes."""

from pathlib import Path

from penstock.router.placement.costs import LinkCost, StepCost, attention_pairs
from penstock.router.placement.objective import Seconds
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, WorkerState

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "placement.md"
COST = StepCost(
    step_s=10e-3, prefill_token_s=0.1e-3, prefill_pair_s=4e-9, decode_token_s=0.05e-3, context_token_s=0.1e-6
)
QUEUED = 8000
CLUSTER = ClusterSnapshot(
    prefill=(
        WorkerState(
            "P1",
            role="prefill",
            node="a",
            cost=COST,
            prompts=1,
            prefill_tokens=QUEUED,
            prefill_pairs=attention_pairs(QUEUED),
            head_tokens=QUEUED,
            head_pairs=attention_pairs(QUEUED),
        ),
        WorkerState("P2", role="prefill", node="b", cost=COST),
    ),
    decode=(
        WorkerState("D1", node="c", cost=COST, streams=10, context_tokens=40_000, output_tokens=1000),
        WorkerState("D2", node="d", cost=COST, streams=20, context_tokens=80_000, output_tokens=2000),
    ),
    links={"network": LinkCost(latency_s=2e-3, token_s=10e-6)},
    alone_s=5e-3,
    pair_s=10e-3,
)
REQUEST = PlacementRequest(6000, {"P1": 4096, "D2": 2048}, output_tokens=200)


def row(placement: Placement) -> str:
    """As in the page's table."""
    found = placement.prediction
    assert found is not None
    parts = (found.queue_s, found.pull_s, found.prefill_s, found.hop_s, found.transfer_s, found.admit_s)
    seconds = (*parts, found.decode_s, found.others_s, found.evict_s, found.ttft_s, found.total_s)
    workers = (placement.decode, placement.prefill or "-", placement.source or "-")
    return "| " + " | ".join([*workers, *(f"{1e3 * each:.1f}" for each in seconds)]) + " |"


def test_the_table_is_what_the_policy_computes_best_first() -> None:
    printed = [line for line in PAGE.read_text().splitlines() if line.startswith(("| D1 |", "| D2 |"))]
    assert printed == [row(each) for each in Seconds().candidates(REQUEST, CLUSTER)]


def test_the_first_line_is_the_choice() -> None:
    assert Seconds().choose(REQUEST, CLUSTER) == Placement("D1", "P2", source="P1")


def test_the_text_names_the_same_figures() -> None:
    text = " ".join(PAGE.read_text().split())
    scratch = COST.seconds(6000, attention_pairs(6000), steps=3) - COST.seconds(1904, attention_pairs(6000, 4096))
    stall = 1904 * COST.prefill_token_s + attention_pairs(6000, 4096) * COST.prefill_pair_s
    assert f"computing them would take {1e3 * scratch:.1f} ms" in text
    assert f"stand still for {1e3 * stall:.1f} ms each" in text
