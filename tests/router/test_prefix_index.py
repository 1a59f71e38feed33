"""The index remembers who was given which prefix, and forgets on time."""

from penstock.router.prefix_index import PrefixIndex

TOKENS = list(range(100))


def test_a_shared_prefix_is_found_to_its_last_full_block() -> None:
    index = PrefixIndex(1000)
    index.record("a", index.hash(TOKENS, ""))
    index.record("b", index.hash(TOKENS[:40], ""))
    assert index.match(index.hash(TOKENS, "")) == {"a": 96, "b": 32}
    assert index.match(index.hash([*TOKENS[:50], 7, 7], "")) == {"a": 48, "b": 32}
    assert index.match(index.hash([7, *TOKENS], "")) == {}


def test_tenants_with_different_salts_share_nothing() -> None:
    index = PrefixIndex(1000)
    index.record("a", index.hash(TOKENS, "one"))
    assert index.match(index.hash(TOKENS, "two")) == {}


def test_hashing_goes_on_from_known_blocks() -> None:
    index = PrefixIndex(1000)
    known = index.hash(TOKENS[:50], "")
    assert index.hash(TOKENS, "", known) == index.hash(TOKENS, "")
    assert len(known) == 3


def test_a_lost_worker_and_a_retracted_placement_are_forgotten() -> None:
    index = PrefixIndex(1000)
    hashes = index.hash(TOKENS, "")
    index.record("a", hashes)
    index.record("b", hashes)
    index.forget("a")
    assert index.match(hashes) == {"b": 96}
    index.retract("b", hashes[2:])
    assert index.match(hashes) == {"b": 32}
    index.forget("b")
    assert len(index) == 0


def test_memory_is_bounded_and_ends_go_before_beginnings() -> None:
    index = PrefixIndex(8)
    old, new = index.hash(TOKENS, ""), index.hash(list(range(500, 600)), "")
    index.record("a", old)
    index.record("a", new)
    assert len(index) == 8
    assert index.match(new) == {"a": 96}
    assert index.match(old) == {"a": 32}
