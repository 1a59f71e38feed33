"""The router's /probe moves real blocks between real workers, and says so when none move any more."""

import json
import time
import urllib.request
from typing import Any

from tests.e2e.conftest import Deploy


def probe(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(urllib.request.Request(f"{url}/probe", method="POST"), timeout=20) as response:
        found: list[dict[str, Any]] = json.load(response)["pairs"]
        return found


def test_blocks_move_and_then_do_not(deploy: Deploy) -> None:
    pair = deploy()
    [prefill], [decode] = pair.prefill, pair.decode
    pulled = decode.metric("penstock_pulled_blocks_total")
    [tried] = probe(pair.url)
    assert (tried["prefill"], tried["decode"], tried["ok"]) == (prefill.url, decode.url, True)
    assert tried["blocks"] > 0
    assert decode.metric("penstock_pulled_blocks_total") == pulled + tried["blocks"]
    pair.assert_quiet()
    prefill.process.kill()
    deadline = time.monotonic() + 10
    found = probe(pair.url)
    while any(tried["ok"] for tried in found):  # the last answer stays fresh for two seconds
        assert time.monotonic() < deadline
        time.sleep(0.2)
        found = probe(pair.url)
    assert all(tried["message"] for tried in found)
