"""The key file: what it may hold, how it is read again, and that nothing tells a key."""

import asyncio
import hashlib
import logging
import os
from pathlib import Path

import pytest

from penstock.errors import ConfigError, RequestError
from penstock.router.flow.keys import KeyFile, new_key, parse_keys
from penstock.router.flow.tenants import ANYONE, Tenant
from tests.router.flow.virtual_time import run


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


FILE = f"""
[search]
key_sha256 = ["{digest("old")}", "{digest("new")}"]
weight = 2.5
priority = -1
requests_per_minute = 60
tokens_per_minute = 100_000
salt = "a secret of sixteen or more"

[batch]
key_sha256 = ["{digest("night")}"]
"""


def test_every_key_of_a_tenant_finds_it() -> None:
    ring = parse_keys(FILE, "keys.toml")
    search = Tenant(
        name="search",
        weight=2.5,
        priority=-1,
        requests_per_minute=60,
        tokens_per_minute=100_000,
        salt="a secret of sixteen or more",
    )
    assert (ring.find("old"), ring.find("new"), ring.find("night")) == (search, search, Tenant(name="batch"))
    assert ring.find(digest("old")) is None, "the hash is no key"
    assert ring.find("") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no tenant"),
        ("[a]\nkey_sha256 = []", "length >= 1"),
        ("[a]\nkey_sha256 = ['secret']", "regex"),
        (f"[a]\nkey_sha256 = ['{digest('x')}']\nwieght = 2", "did you mean 'weight'"),
        (f"[a]\nkey_sha256 = ['{digest('x')}']\nweight = 0", "> 0"),
        (f"[a]\nkey_sha256 = ['{digest('x')}']\nsalt = 'short'", "length >= 16"),
        (f"[a]\nkey_sha256 = ['{digest('x')}']\n[b]\nkey_sha256 = ['{digest('x')}']", "b and a have the same key"),
        ("[a", "table declaration"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i)keys.toml.*{reason}"):
        parse_keys(text, "keys.toml")


def test_without_a_file_everybody_may_ask() -> None:
    assert KeyFile("").tenant("Bearer whatever", None) is ANYONE
    assert KeyFile("").tenant(None, None) is ANYONE


def test_both_dialects_name_their_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    keys = KeyFile(str(path))
    assert keys.tenant("Bearer night", None).name == "batch"
    assert keys.tenant("bearer  night ", None).name == "batch"
    assert keys.tenant(None, "night").name == "batch"
    for authorization, reason in (
        (None, "no API key is given"),
        ("Basic night", "no API key"),
        ("Bearer day", "not known"),
    ):
        with pytest.raises(RequestError, match=reason) as caught:
            keys.tenant(authorization, None)
        assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
        assert "day" not in str(caught.value)


def test_a_changed_file_is_read_without_a_restart_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the file is swapped by a link, as a mounted Secret is."""
    caplog.set_level(logging.INFO)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (first / "keys.toml").write_text(FILE)
    (second / "keys.toml").write_text(f"[other]\nkey_sha256 = ['{digest('day')}']")
    link = tmp_path / "data"
    link.symlink_to(first)
    errors: list[int] = []

    async def test() -> None:
        keys = KeyFile(str(link / "keys.toml"), lambda: errors.append(1))
        watching = asyncio.ensure_future(keys.watch())
        swapped = tmp_path / "swapped"
        swapped.symlink_to(second)
        swapped.rename(link)
        await asyncio.sleep(1.5)
        assert keys.tenant("Bearer day", None).name == "other"
        with pytest.raises(RequestError):
            keys.tenant("Bearer night", None)
        for broken in ("[", "", None):
            (second / "keys.toml").unlink() if broken is None else (second / "keys.toml").write_text(broken)
            await asyncio.sleep(1.5)
            assert keys.tenant("Bearer day", None).name == "other"
        (second / "keys.toml").write_text(FILE)
        await asyncio.sleep(1.5)
        assert keys.tenant("Bearer night", None).name == "batch"
        watching.cancel()

    run(test())
    assert len(errors) == 3
    assert caplog.text.count("the API keys stay as they were") == 3
    assert "night" not in caplog.text


def test_a_pipe_in_place_of_the_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)

    async def test() -> None:
        errors: list[int] = []
        keys = KeyFile(str(path), lambda: errors.append(1))
        watching = asyncio.ensure_future(keys.watch())
        path.unlink()
        os.mkfifo(path)
        await asyncio.sleep(3)
        assert (keys.tenant("Bearer old", None).name, errors) == ("search", [1])
        with pytest.raises(ConfigError, match="no regular file"):
            KeyFile(str(path))
        path.unlink()
        path.write_text(FILE.replace("search", "found"))
        await asyncio.sleep(3)
        assert keys.tenant("Bearer old", None).name == "found"
        watching.cancel()

    run(test())


def test_a_missing_or_huge_file_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml cannot be read: No such file"):
        KeyFile(str(tmp_path / "missing.toml"))
    (tmp_path / "huge.toml").write_bytes(b"#" * (17 * 2**20))
    with pytest.raises(ConfigError, match="longer than"):
        KeyFile(str(tmp_path / "huge.toml"))


def test_new_keys_are_long_and_fit_the_file() -> None:
    keys = {new_key()[0] for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) > 40
    key, hash_ = new_key()
    assert parse_keys(f"[a]\nkey_sha256 = ['{hash_}']", "f").find(key) == Tenant(name="a")


def test_salts_keep_tenants_apart_whatever_they_ask_for() -> None:
    one, two, none = Tenant(name="1", salt="a" * 16), Tenant(name="2", salt="b" * 16), ANYONE
    asked = ["", "x", one.salted(""), one.salted("x"), "a" * 16]
    assert none.salted("x") == "x", "as asked for"
    assert one.salted("x") == Tenant(name="3", salt="a" * 16).salted("x"), "tenants may share a salt on purpose"
    for salted in ([one.salted(salt) for salt in asked], [two.salted(salt) for salt in asked]):
        assert len(set(salted)) == len(asked)
    assert not {one.salted(salt) for salt in asked} & {two.salted(salt) for salt in asked}
    assert not {one.salted(salt) for salt in asked} & {none.salted(salt) for salt in ["", "x", "a" * 16]}
