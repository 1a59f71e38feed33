"""Whose request it is. With an API key file every key's owner is a tenant; without one, all are ANYONE."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Somebody who shares the deployment with others."""

    name: str = ""
    weight: float = 1.0
    """Share of the work when all want more than there is, against other tenants' weights."""
    priority: int = 0
    """Smaller is served first, before any fairness."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and answer together; None is no limit."""
    salt: str = ""
    """A secret; tenants with different salts never share a KV block. Empty shares with all that have none."""

    def salted(self, cache_salt: str) -> str:
        """The salt of a request that asks for `cache_salt`. Who does not know `salt` cannot come to the same."""
        if not self.salt:
            return cache_salt
        return hashlib.blake2b(cache_salt.encode(), key=_key(self.salt), digest_size=16).hexdigest()


ANYONE = Tenant()
"""Everybody, when there are no API keys."""


def _key(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode(), digest_size=32, person=b"tenant").digest()
