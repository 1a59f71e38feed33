"""`penstock key`: its output is a key file, and the key opens it."""

from pathlib import Path

import pytest

from penstock.cli import main
from penstock.router.flow.keys import parse_keys
from penstock.router.flow.tenants import Tenant


def test_entries_make_a_key_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, keys = tmp_path / "keys.toml", []
    for words in (
        ["search", "--requests-per-minute=60", "--weight=2", "--priority", "-5"],
        ["--tokens-per-minute=9", "--salt", "a b"],
    ):
        assert main(["key", *words]) == 0
        said = capsys.readouterr()
        keys.append(said.err.split()[-1])
        assert keys[-1] not in said.out
        path.write_text((path.read_text() if path.exists() else "") + said.out)
    ring = parse_keys(path.read_text(), "keys.toml")
    assert ring.find(keys[0]) == Tenant(name="search", weight=2, priority=-5, requests_per_minute=60)
    other = ring.find(keys[1])
    assert other is not None
    assert (other.name, other.tokens_per_minute, len(other.salt) > 16) == ("a b", 9, True)


def test_a_wrong_quota_makes_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "search", "--requests-per-minute=0"]) == 2
    said = capsys.readouterr()
    assert "the entry of search" in said.err
    assert "sk-" not in said.err + said.out
