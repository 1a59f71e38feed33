"""What every baseline must keep, whatever it prefers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.router.baselines import BASELINES
from penstock.router.policy import PlacementRequest
from tests.router.baselines.pools import cluster, decode, prefill

NAMES = ("p0", "p1", "p2", "d0", "d1", "d2")


@pytest.mark.parametrize("name", BASELINES)
@given(
    tokens=st.integers(1, 5000),
    cached=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 5000)),
    excluded=st.frozensets(st.sampled_from(NAMES)),
    busy=st.lists(st.integers(0, 200), min_size=6, max_size=6),
    revisions=st.lists(st.sampled_from(["r1", "r2"]), min_size=6, max_size=6),
)
def test_excluded_workers_and_pairs_of_two_revisions_are_never_chosen(
    name: str, tokens: int, cached: dict[str, int], excluded: frozenset[str], busy: list[int], revisions: list[str]
) -> None:
    makers = (prefill, prefill, prefill, decode, decode, decode)
    workers = {
        url: make(url, revision=revision, prompts=load, streams=load, prefill_tokens=100 * load)
        for url, make, revision, load in zip(NAMES, makers, revisions, busy, strict=True)
    }
    request = PlacementRequest(tokens, cached, excluded)
    policy = BASELINES[name](0)
    for _ in range(3):  # some remember
        placement = policy.choose(request, cluster(*workers.values()))
        if placement is None:
            assert {"d0", "d1", "d2"} <= excluded
        else:
            assert placement.decode not in excluded
            assert placement.prefill not in excluded
            if placement.prefill is not None:
                assert workers[placement.prefill].revision == workers[placement.decode].revision


@pytest.mark.parametrize("name", BASELINES)
def test_without_a_prefill_worker_the_decode_worker_computes(name: str) -> None:
    placement = BASELINES[name](0).choose(PlacementRequest(1000), cluster(decode("d")))
    assert placement is not None
    assert (placement.decode, placement.prefill) == ("d", None)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_names_its_source(name: str) -> None:
    doc = type(BASELINES[name](0)).__doc__ or ""
    sources = ("lib/kv-router", "sgl-project", "llm-d", "FAST '25", "ICLR '25", "Mitzenmacher", "nginx", "Kubernetes")
    assert any(source in doc for source in sources), doc
