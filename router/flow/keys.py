"""API keys: a TOML file of tenants with the hashes of their keys, read again when it changes.

    [search-team]
    key_sha256 = ["9f86d0...", "60303a..."]   # two while the key is being replaced
    weight = 2
    requests_per_minute = 600
    tokens_per_minute = 200_000

The file holds no key, so it may lie in Git; as a mounted Secret it follows the Secret. Keys are long random strings
(`penstock key` makes them), for which one round of SHA-256 is enough. No key is ever logged.
"""

import asyncio
import difflib
import hashlib
import hmac
import logging
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from penstock.errors import ConfigError, RequestError
from penstock.router.flow.tenants import ANYONE, Tenant

LOOK_S = 1.0
"""Pause between two looks at the file."""
_MOST_FILE_BYTES = 16 * 2**20

log = logging.getLogger(__name__)


class Entry(Struct, kw_only=True, forbid_unknown_fields=True):
    """One tenant in the file."""

    key_sha256: Annotated[list[Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]], Meta(min_length=1)]
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    requests_per_minute: Annotated[int, Meta(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Meta(ge=1)] | None = None
    salt: Annotated[str, Meta(min_length=16)] | None = None


class KeyRing:
    """The tenants of one state of the file, found by their keys."""

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        """`tenants` by the hexadecimal SHA-256 of their keys."""
        # The table is keyed with a secret of this process: how long a look takes tells nothing about stored hashes.
        self._secret = secrets.token_bytes(32)
        self._tenants = {self._mix(bytes.fromhex(digest)): tenant for digest, tenant in tenants.items()}
        self.names = frozenset(tenant.name for tenant in self._tenants.values())

    def find(self, key: str) -> Tenant | None:
        """The owner of `key`."""
        return self._tenants.get(self._mix(hashlib.sha256(key.encode()).digest()))

    def _mix(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")


def parse_keys(text: str, where: str) -> KeyRing:
    """The tenants of a key file. Raises ConfigError naming `where`, the tenant and the field."""
    try:
        entries = msgspec.toml.decode(text, type=dict[str, Entry])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {_explained(str(error))}") from error
    found: dict[str, Tenant] = {}
    for name, entry in entries.items():
        tenant = Tenant(
            name=name,
            weight=entry.weight,
            priority=entry.priority,
            requests_per_minute=entry.requests_per_minute,
            tokens_per_minute=entry.tokens_per_minute,
            salt=entry.salt or "",
        )
        for digest in entry.key_sha256:
            if digest in found:
                raise ConfigError(f"{where}: {name} and {found[digest].name} have the same key")
            found[digest] = tenant
    if not found:
        raise ConfigError(f"{where} names no tenant, so nobody could ask: write one, or start without a key file")
    return KeyRing(found)


class KeyFile:
    """The keys in force: those of the file's last good state. Without a file, everybody is ANYONE."""

    def __init__(self, path: str, on_error: Callable[[], object] = lambda: None) -> None:
        """Raises ConfigError when the file cannot be used; later it only keeps what it has, and tells `on_error`."""
        self._path = Path(path) if path else None
        self._on_error = on_error
        self._seen = self._stamp()
        self._ring = self._read() if self._path is not None else None

    def tenant(self, authorization: str | None, api_key: str | None) -> Tenant:
        """Whose request it is, by its `Authorization: Bearer KEY` or `x-api-key: KEY`. Raises RequestError (401)."""
        if self._ring is None:
            return ANYONE
        key = api_key or _bearer(authorization)
        if not key:
            raise _unauthorized("no API key is given: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`")
        tenant = self._ring.find(key)
        if tenant is None:
            raise _unauthorized("the API key is not known here")
        return tenant

    async def watch(self) -> None:
        """Reads the file again whenever it has changed, for ever."""
        while self._path is not None:
            await asyncio.sleep(LOOK_S)
            stamp = self._stamp()
            if stamp == self._seen:
                continue
            self._seen = stamp
            try:
                self._ring = self._read()
                log.info("API keys read again from %s: %d tenants", self._path, len(self._ring.names))
            except ConfigError as error:
                self._on_error()
                log.error("the API keys stay as they were: %s", error)

    def _read(self) -> KeyRing:
        assert self._path is not None
        try:
            with open(self._path, "rb", opener=_without_waiting) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ConfigError(f"the key file {self._path} is no regular file")
                data = file.read(_MOST_FILE_BYTES + 1)
            if len(data) > _MOST_FILE_BYTES:
                raise ConfigError(f"the key file {self._path} is longer than {_MOST_FILE_BYTES} bytes")
            text = data.decode()
        except OSError as error:
            raise ConfigError(f"the key file {self._path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"the key file {self._path} is not UTF-8: {error}") from error
        return parse_keys(text, str(self._path))

    def _stamp(self) -> tuple[int, ...]:
        """Changes when the file does; a Secret's mount swaps a link, so the file behind it counts."""
        if self._path is not None:
            with suppress(OSError):
                found = os.stat(self._path)
                return found.st_ino, found.st_mtime_ns, found.st_size
        return ()


def new_key() -> tuple[str, str]:
    """A fresh key, and the hexadecimal SHA-256 for the file."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


def _without_waiting(path: str, flags: int) -> int:
    """Opens also a pipe, for which nobody may ever write."""
    return os.open(path, flags | os.O_NONBLOCK)


def _bearer(authorization: str | None) -> str:
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _unauthorized(message: str) -> RequestError:
    return RequestError(message, code="invalid_api_key", status=401)


def _explained(message: str) -> str:
    """msgspec's message; for an unknown field with the nearest one that there is."""
    unknown = message.partition("unknown field `")[2].partition("`")[0]
    if not unknown:
        return message
    names = Entry.__struct_fields__
    close = difflib.get_close_matches(unknown, names, n=1, cutoff=0.5)
    return f"{message}; " + (f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(names)}")
