"""Where a part listens, as others write it. Knows addresses only."""

from urllib.parse import urlsplit


def base_url(host: str, port: int) -> str:
    """The URL under which this machine reaches what listens on `host`; an IPv6 address stands in brackets."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # of all addresses, the loopback one
    return f"http://{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """A host as URLs write it."""
    return f"[{host}]" if ":" in host else host


def authority(url: str, port: int | None = None) -> str:
    """`host:port` of a URL, or of another `port` of the same host."""
    parts = urlsplit(url)
    return f"{bracketed(parts.hostname or '')}:{port or parts.port or 80}"
