"""Dynamo's cost on cases computed by hand, with blocks of 16 tokens."""

from penstock.router.baselines.dynamo import DynamoCost
from penstock.router.policy import Placement
from tests.router.baselines.pools import cluster, decode, prefill, request

DECODE = decode("d0")


def test_the_cached_prefix_counts_until_the_queue_outweighs_it() -> None:
    # 1,600 tokens: 100 blocks. p0 has 40 of them.
    def chosen(queued: int) -> str | None:
        workers = cluster(prefill("p0", prefill_tokens=queued), prefill("p1"), DECODE)
        placement = DynamoCost().choose(request(1600, p0=640), workers)
        return placement.prefill if placement else None

    assert chosen(624) == "p0"  # (624 + 960) / 16 = 99 blocks, against 100
    assert chosen(656) == "p1"  # 101


def test_decode_workers_are_chosen_by_blocks_in_use_and_nothing_else() -> None:
    workers = cluster(
        prefill("p"), decode("d0", context_tokens=4000, streams=1), decode("d1", context_tokens=3000, streams=9)
    )
    assert DynamoCost().choose(request(1600, d0=1600), workers) == Placement("d1", "p")


def test_always_a_prefill_worker() -> None:
    assert DynamoCost().choose(request(10, d0=9), cluster(prefill("p"), DECODE)) == Placement("d0", "p")
