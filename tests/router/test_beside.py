"""The policy of a router beside one decode worker, tested as the pure function it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.router.beside import Beside, picked_of
from penstock.router.placement.least_work import LeastWork
from penstock.router.policy import ClusterSnapshot, Picked, Placement, PlacementRequest, WorkerState

OWN, OTHER, P1, P2 = "http://10.0.0.1:8100", "http://10.0.0.2:8100", "http://10.0.1.1:8100", "http://10.0.1.2:8100"
POLICY = Beside(OWN, LeastWork(min_prefill_tokens=16))


def at(url: str) -> str:
    return url.removeprefix("http://")


def worker(url: str, *, revision: str = "", tokens: int = 0) -> WorkerState:
    return WorkerState(url, prefill_tokens=tokens, revision=revision)


CLUSTER = ClusterSnapshot(
    prefill=(worker(P1), worker(P2, tokens=5000)), decode=(worker(OWN, tokens=5000), worker(OTHER))
)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(PlacementRequest(1000), Placement(OWN, P1), id="what nobody has picked the other policy decides"),
        pytest.param(PlacementRequest(5), Placement(OWN), id="which may be the own worker alone"),
        pytest.param(PlacementRequest(1000, picked=Picked(at(P2))), Placement(OWN, P2), id="picked"),
        pytest.param(PlacementRequest(5, picked=Picked(at(P2))), Placement(OWN, P2), id="however short"),
        pytest.param(PlacementRequest(1000, picked=Picked(at(OWN))), Placement(OWN), id="picked for itself"),
        pytest.param(PlacementRequest(1000, picked=Picked(at(OTHER))), Placement(OWN, OTHER), id="decode computes"),
        pytest.param(
            PlacementRequest(1000, picked=Picked(at(P1), at(OTHER))), Placement(OWN, P1, OTHER), id="with a source"
        ),
        pytest.param(
            PlacementRequest(1000, picked=Picked(at(P1), "10.9.9.9:1")), Placement(OWN, P1), id="unknown source"
        ),
        pytest.param(PlacementRequest(1000, picked=Picked("10.9.9.9:1")), Placement(OWN, P1), id="unknown prefill"),
        pytest.param(PlacementRequest(1000, picked=Picked("")), Placement(OWN, P1), id="nobody"),
        pytest.param(PlacementRequest(1000, picked=Picked("10.0.1.2:8000")), Placement(OWN, P2), id="by its host"),
        pytest.param(
            PlacementRequest(1000, excluded=frozenset([P2]), picked=Picked(at(P2))),
            Placement(OWN, P1),
            id="one that has failed it",
        ),
        pytest.param(PlacementRequest(1000, excluded=frozenset([OWN])), None, id="the own one is full"),
        pytest.param(
            PlacementRequest(1000, excluded=frozenset([OWN]), picked=Picked(at(P1))), None, id="full whatever is picked"
        ),
    ],
)
def test_choices(request_: PlacementRequest, expected: Placement | None) -> None:
    assert POLICY.choose(request_, CLUSTER) == expected


def test_another_revision_is_not_paired_whoever_says_so() -> None:
    cluster = ClusterSnapshot(
        prefill=(worker(P1, revision="b"), worker(P2, revision="a")), decode=(worker(OWN, revision="a"),)
    )
    assert POLICY.choose(PlacementRequest(1000, picked=Picked(at(P1))), cluster) == Placement(OWN, P2)


def test_others_decode_only_when_the_own_worker_is_lost() -> None:
    cluster = ClusterSnapshot(prefill=CLUSTER.prefill, decode=(worker(OTHER),))
    assert POLICY.choose(PlacementRequest(1000, picked=Picked(at(P2))), cluster) == Placement(OTHER, P1)
    assert POLICY.choose(PlacementRequest(1000), ClusterSnapshot()) is None


@given(st.text(max_size=30), st.text(max_size=30))
def test_whatever_a_header_says_only_known_workers_are_named(prefill: str, source: str) -> None:
    placement = POLICY.choose(PlacementRequest(1000, picked=Picked(prefill, source)), CLUSTER)
    assert placement is not None
    assert {placement.prefill, placement.source} <= {P1, P2, OWN, OTHER, None}


def test_headers_are_those_of_llm_ds_picker_and_a_source() -> None:
    headers = [(b"x-prefiller-host-port", b"10.0.0.1:8000"), (b"x-penstock-source", b"10.0.0.2:8000")]
    assert picked_of({"type": "http", "headers": headers}) == Picked("10.0.0.1:8000", "10.0.0.2:8000")
    assert picked_of({"type": "http", "headers": headers[:1]}) == Picked("10.0.0.1:8000")
    assert picked_of({"type": "http", "headers": headers[1:]}) is None


@pytest.mark.parametrize(
    ("said", "expected"), [("1", 1), ("-2", -2), ("9" * 10, 0), ("1.5", 0), ("\u0663", 0), ("", 0)]
)
def test_a_priority_is_a_small_number(said: str, expected: int) -> None:
    headers = [(b"x-prefiller-host-port", b"10.0.0.1:8000"), (b"x-penstock-priority", said.encode("utf-8"))]
    assert picked_of({"type": "http", "headers": headers}) == Picked("10.0.0.1:8000", priority=expected)
