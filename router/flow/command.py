"""`penstock key`: makes an API key. The key goes to standard error, its entry for the key file to standard output."""

import json
import re
import secrets
import sys
from dataclasses import dataclass

from penstock.config import option
from penstock.router.flow.keys import new_key, parse_keys


@dataclass(frozen=True, kw_only=True)
class KeyConfig:
    """Whose key, and what it may."""

    tenant: str
    requests_per_minute: int | None = option(None, "Quota of requests; none is no limit.", unit="requests")
    tokens_per_minute: int | None = option(None, "Quota of tokens, prompt and answer together.", unit="tokens")
    weight: float | None = option(None, "Share against other tenants when there is not enough for all; 1 when none.")
    priority: int | None = option(None, "Smaller is served first, before any fairness; 0 when none.")
    salt: bool = option(False, "Make a salt too: the tenant then never shares a KV block with others.")


def run_key(config: KeyConfig) -> int:
    """Raises ConfigError when the entry would not be valid."""
    key, digest = new_key()
    fields: dict[str, object] = {
        "key_sha256": [digest],
        "weight": config.weight,
        "priority": config.priority,
        "requests_per_minute": config.requests_per_minute,
        "tokens_per_minute": config.tokens_per_minute,
        "salt": secrets.token_urlsafe(24) if config.salt else None,
    }
    name = config.tenant if re.fullmatch(r"[A-Za-z0-9_-]+", config.tenant) else json.dumps(config.tenant)
    lines = [f"[{name}]", *(f"{field} = {json.dumps(value)}" for field, value in fields.items() if value is not None)]
    parse_keys("\n".join(lines), f"the entry of {config.tenant}")
    print("\n".join(lines))
    print(f"the key of {config.tenant}, which is shown only now: {key}", file=sys.stderr)
    return 0
