"""Which workers any sequence of events about EndpointSlices leaves."""

from typing import Any

import msgspec
import pytest

from penstock.router.cluster import Member
from penstock.router.endpoint_slices import EndpointSlice, Slices, after, listed, members
from tests.router.fake_api_server import endpoint_slice


def read(item: dict[str, Any]) -> EndpointSlice:
    return msgspec.convert(item, EndpointSlice)


def follow(*events: tuple[str, dict[str, Any]]) -> set[str]:
    slices: Slices = {}
    for kind, item in events:
        slices = after(slices, kind, read(item))
    return {member.url for member in members(slices)}


def test_a_slice_says_role_revision_addresses_and_machines() -> None:
    slices = listed([read(endpoint_slice("a", "10.0.0.1", "10.0.0.2", role="prefill", revision="r7"))])
    assert members(slices) == {
        Member("http://10.0.0.1:8100", "prefill", "r7", "node-0"),
        Member("http://10.0.0.2:8100", "prefill", "r7", "node-0"),
    }


def test_members_follow_additions_changes_and_deletions() -> None:
    first, second = endpoint_slice("a", "10.0.0.1"), endpoint_slice("b", "10.0.0.2")
    assert follow(("ADDED", first), ("ADDED", second)) == {"http://10.0.0.1:8100", "http://10.0.0.2:8100"}
    assert follow(("ADDED", first), ("MODIFIED", endpoint_slice("a", "10.0.0.3"))) == {"http://10.0.0.3:8100"}
    assert follow(("ADDED", first), ("ADDED", second), ("DELETED", first)) == {"http://10.0.0.2:8100"}
    assert follow(("DELETED", first)) == set()


def test_an_event_that_comes_twice_changes_nothing() -> None:
    item = endpoint_slice("a", "10.0.0.1")
    assert follow(("ADDED", item), ("ADDED", item)) == follow(("ADDED", item))


def test_an_address_that_moves_between_slices_stays_a_member_throughout() -> None:
    both = [("ADDED", endpoint_slice("a", "10.0.0.1")), ("ADDED", endpoint_slice("b", "10.0.0.1"))]
    assert follow(*both) == follow(*both, ("MODIFIED", endpoint_slice("a"))) == {"http://10.0.0.1:8100"}


def test_a_terminating_worker_gets_no_new_requests() -> None:
    item = endpoint_slice("a", "10.0.0.1", "10.0.0.2", terminating=("10.0.0.1",))
    assert follow(("ADDED", item)) == {"http://10.0.0.2:8100"}


@pytest.mark.parametrize(
    "item",
    [
        endpoint_slice("a", "10.0.0.1", role="router"),
        endpoint_slice("a", "10.0.0.1", ports=None),
        endpoint_slice("a", "10.0.0.1", ports=[{"name": "metrics", "port": 1}]),
        endpoint_slice("a"),
        {"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]},
    ],
)
def test_what_is_no_slice_of_workers_lists_none(item: dict[str, Any]) -> None:
    assert follow(("ADDED", item)) == set()


def test_an_ipv6_address_is_written_as_urls_want_it() -> None:
    assert follow(("ADDED", endpoint_slice("a", "fd00::1"))) == {"http://[fd00::1]:8100"}
