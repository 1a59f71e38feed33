"""Decisions are remembered with what came of them, and predictions that are off are noticed."""

import msgspec
import pytest

from penstock.protocol import Done
from penstock.router.index.claims import Claims, Untrue
from penstock.router.placement.drift import WINDOW
from penstock.router.placement.explain import PARTS, Explanation, explain, table
from penstock.router.placement.guarded import Guarded
from penstock.router.placement.journal import REGRET_OF, REMEMBERED, Decision, Journal, regret_s
from penstock.router.placement.model import CostModel, Hops
from penstock.router.placement.objective import Seconds
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, WorkerState

CLUSTER = ClusterSnapshot(
    prefill=(WorkerState("p1", role="prefill", node="n1"), WorkerState("p2", role="prefill", node="n2")),
    decode=(
        WorkerState("d1", node="n1", streams=20, context_tokens=40_000),
        WorkerState("d2", node="n2", streams=30, context_tokens=40_000),
    ),
)
REQUEST = PlacementRequest(2000, {"p1": 1000})


def place(journal: Journal, request_id: str = "r", request: PlacementRequest = REQUEST) -> Decision:
    placement = Guarded(journal).choose(request, CLUSTER)
    assert placement is not None
    return journal.placed(request_id, request, CLUSTER, placement)


def predicted(decision: Decision) -> tuple[float, int]:
    assert decision.placement.prediction is not None
    return decision.placement.prediction.ttft_s, decision.placement.prediction.cached_tokens


def come_true(journal: Journal, count: int, *, slower: float = 1.0, fewer_cached: int = 0) -> None:
    for number in range(count):
        decision = place(journal, f"{number}")
        ttft_s, cached = predicted(decision)
        journal.came_true(decision, slower * ttft_s, cached - fewer_cached)


def test_what_a_cancelled_request_was_to_compute_is_held_against_nobody() -> None:
    """A request relied on one before it, whose client left: the worker had told of nothing."""
    claims = Claims()
    journal = Journal(CostModel(), lambda _url, told, found: claims.add(told, found))
    relied = PlacementRequest(2000, {"p1": 1000}, pending=frozenset({"p1"}))
    for number in range(10 * WINDOW):
        decision = place(journal, f"{number}", relied)
        assert decision.placement.computing == "p1"
        journal.came_true(decision, 9 * predicted(decision)[0], 0)
    claims.check()
    assert journal.alarms == ()
    for number in range(10 * WINDOW):
        decision = place(journal, f"{number}")
        journal.came_true(decision, predicted(decision)[0], 0)
    with pytest.raises(Untrue):
        claims.check()


def test_late_first_tokens_count_also_where_a_block_that_is_under_way_was_not_found() -> None:
    journal = Journal(CostModel())
    relied = PlacementRequest(2000, {"p1": 1000}, pending=frozenset({"p1"}))
    for number in range(10 * WINDOW):
        decision = place(journal, f"{number}", relied)
        journal.came_true(decision, 9 * predicted(decision)[0], 1000 - 16)
    assert journal.alarms == ("ttft",)


def test_a_decision_is_found_with_what_came_of_it() -> None:
    journal = Journal(CostModel())
    decision = place(journal)
    assert journal.find("r") is decision
    assert (decision.placement.prefill, decision.placement.by) == ("p1", "seconds")
    ttft_s, cached = predicted(decision)
    journal.came_true(decision, ttft_s, cached)
    assert (decision.ttft_s, decision.cached_tokens, decision.regret_s) == (ttft_s, 1000, 0.0)
    assert journal.find("other") is None


def test_what_came_of_it_is_logged_as_fields(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(CostModel())
    decision = place(journal)
    with caplog.at_level("DEBUG", "penstock.router.placement"):
        journal.came_true(decision, 0.5, 1000)
    fields = vars(caplog.records[-1])
    assert (fields["placed"], fields["ttft_s"], fields["cached_tokens"]) == ("r", 0.5, 1000)
    assert fields["predicted_ttft_s"] == predicted(decision)[0]


def test_regret_is_what_the_best_other_worker_would_have_saved() -> None:
    journal = Journal(CostModel())
    decision = place(journal)
    other = Seconds().choose(PlacementRequest(2000, {"p1": 1000}, excluded=frozenset(["p1"])), CLUSTER)
    assert other is not None
    assert other.prediction is not None
    assert regret_s(decision) is None, "as long as the first token has not come"
    journal.came_true(decision, 5.0, None)
    assert decision.regret_s == pytest.approx(5.0 - other.prediction.ttft_s)


def test_regret_costs_a_second_choice_of_few_decisions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """But who asks for an explanation gets it of any."""
    journal, choices = Journal(CostModel()), list[str]()
    choose = Seconds.choose

    def counted(policy: Seconds, request: PlacementRequest, cluster: ClusterSnapshot) -> Placement | None:
        choices.append("")
        return choose(policy, request, cluster)

    monkeypatch.setattr(Seconds, "choose", counted)
    decisions = [place(journal, str(number)) for number in range(4 * REGRET_OF)]
    for decision in decisions:
        journal.came_true(decision, 5.0, None)
    assert len(choices) == (4 + 4 / REGRET_OF) * REGRET_OF
    assert [decision.regret_s is not None for decision in decisions].count(True) == 4
    assert {explain(decision, {}).regret_s for decision in decisions} == {decisions[0].regret_s}


def test_memory_is_bounded() -> None:
    journal = Journal(CostModel())
    for number in range(REMEMBERED + 5):
        place(journal, str(number))
    assert journal.find("4") is None
    assert journal.find("5") is not None


def test_the_usual_rest_of_the_time_is_learned_and_predicted() -> None:
    journal = Journal(model := CostModel())
    decision = place(journal)
    ttft_s, rest = predicted(decision)[0], 0.05
    journal.came_true(decision, ttft_s + 10 * rest, None)
    assert model.hops.usual == {True: 0.0, False: 0.0}, "the first is no measure"
    for _ in range(40):
        journal.came_true(decision, ttft_s + rest, None)
    assert model.hops.usual == {True: pytest.approx(rest), False: 0.0}


def test_what_once_was_slow_is_tried_again() -> None:
    hops = Hops()
    for _ in range(64):
        hops.add(pair=True, seconds=1.0)
    assert hops.usual[True] == 1.0
    for _ in range(64 * 40):
        hops.add(pair=False, seconds=0.01)
    assert hops.usual == {True: 0.0, False: pytest.approx(0.01)}


@pytest.mark.parametrize(
    ("wrong", "alarms"),
    [({"slower": 10.0}, ("ttft",)), ({"fewer_cached": 900}, ("cached_tokens",)), ({}, ())],
    ids=["slow", "not cached", "right"],
)
def test_predictions_that_are_off_for_a_while_raise_an_alarm(wrong: dict[str, float], alarms: tuple[str, ...]) -> None:
    journal = Journal(CostModel())
    come_true(journal, WINDOW // 2, **wrong)  # type: ignore[arg-type]
    assert journal.alarms == (), "half a window is not enough"
    come_true(journal, WINDOW // 2, **wrong)  # type: ignore[arg-type]
    assert journal.alarms == alarms


def test_one_worker_whose_word_is_untrue_alarms_nobody() -> None:
    claims = {url: Claims() for url in ("p1", "p2", "d1", "d2")}
    journal = Journal(CostModel(), lambda url, told, found: claims[url].add(told, found))
    come_true(journal, 2 * WINDOW, slower=10.0, fewer_cached=900)
    assert journal.alarms == ()
    with pytest.raises(Untrue):
        claims["p1"].check()
    for url in ("p2", "d1", "d2"):
        claims[url].check()


def test_while_alarmed_placement_is_by_load_and_when_predictions_hold_again_by_seconds() -> None:
    journal = Journal(CostModel())
    come_true(journal, WINDOW, fewer_cached=900)
    decision = place(journal)
    assert decision.placement.by == "load"
    assert (decision.placement.decode, decision.placement.prefill) == ("d1", "p1")
    cold = place(journal, request=PlacementRequest(2000, {"p2": 1900}))
    assert cold.placement.prefill == "p1", "what is said to be cached does not count"
    assert predicted(cold)[1] == 0, "it goes on predicting"
    assert cold.placement.prediction is not None
    assert not cold.placement.prediction.trusted, "but for the journal only"
    come_true(journal, WINDOW)
    assert journal.alarms == ()
    assert place(journal).placement.by == "seconds"


def test_transfers_teach_the_link_between_their_workers() -> None:
    journal = Journal(model := CostModel())
    across = journal.placed("r", REQUEST, CLUSTER, Placement("d2", "p1"))
    journal.finished(across, Done(pulled_blocks=100, pulls=2, pull_s=0.05))
    assert model.links.keys() == {"network"}
    within = journal.placed("r", REQUEST, CLUSTER, Placement("d2", "p2"))
    journal.finished(within, Done(pulled_blocks=100, pulls=2, pull_s=0.05))
    journal.finished(within, Done())
    assert model.links.keys() == {"network", "node"}


def test_answers_teach_how_long_answers_are() -> None:
    journal = Journal(model := CostModel())
    for _ in range(1500):
        journal.answered(place(journal), 40)
    assert model.output_tokens == pytest.approx(40, abs=2)


def test_an_explanation_has_every_candidate_the_chosen_first() -> None:
    journal = Journal(CostModel())
    decision = place(journal)
    journal.came_true(decision, 0.5, 1000)
    found = msgspec.json.decode(msgspec.json.encode(explain(decision, {})), type=Explanation)
    assert found.num_candidates == len(found.candidates) == 8
    assert [each.chosen for each in found.candidates] == [True] + [False] * 7
    for each in found.candidates:
        assert each.total_s == pytest.approx(sum(each.parts.values()))
    assert found.candidates[0].total_s == min(each.total_s for each in found.candidates)
    text = table(found)
    assert "2000 prompt tokens" in text
    assert "first token after 500.0 ms" in text
    assert sum(line.lstrip().startswith("*") for line in text.splitlines()) == 1
    assert len(text.splitlines()) == 3 + 1 + 8


def test_what_a_policy_does_not_predict_is_no_zero() -> None:
    decision = Journal(CostModel()).placed("r", REQUEST, CLUSTER, Placement("d2", "p1"))
    decision.ttft_s = 9.0
    story, came, _, _, chosen, *_ = table(explain(decision, {})).splitlines()
    assert "by" in story
    assert came == "first token after 9000.0 ms", "and nobody was predicted to be sooner"
    assert chosen.split() == ["*", "d2", "p1", *["-"] * (len(PARTS) + 4)]


def test_a_request_that_was_placed_again_is_told_as_one() -> None:
    again = Journal(CostModel()).placed("r", REQUEST, CLUSTER, Placement("d2"), answered_tokens=300, after="d1 is gone")
    request, before, waiting, *_ = table(explain(again, {})).splitlines()
    assert request.startswith("r: 1700 prompt tokens and 300 of its answer, about ")
    assert before == "this is its last placement; the one before failed: d1 is gone"
    assert waiting == "its next token has not come"
    again.ttft_s, again.failure = 0.5, "d2 is gone, too"
    assert table(explain(again, {})).splitlines()[2:4] == ["next token after 500.0 ms", "it failed: d2 is gone, too"]


def test_what_did_not_come_yet_is_said() -> None:
    assert "has not come" in table(explain(place(Journal(CostModel())), {}))
