"""`penstock explain REQUEST_ID`: asks the router why it placed a request where it did, and prints one table."""

import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException

import msgspec

from penstock.config import check_url, option
from penstock.errors import PenstockError
from penstock.router.openai.responses import ErrorBody
from penstock.router.placement.explain import Explanation, table

_PATIENCE_S = 10.0


@dataclass(frozen=True)
class ExplainConfig:
    """Whom to ask."""

    url: str = option(
        "http://127.0.0.1:8000", "Where the router listens; it answers only to its own machine (or a port-forward)."
    )

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        check_url("--url", self.url)


def run_explain(config: ExplainConfig, request_id: str) -> int:
    """Prints the table. Raises PenstockError when the router does not answer or does not know the request."""
    url = f"{config.url.rstrip('/').removesuffix('/v1')}/explain/{urllib.parse.quote(request_id, safe='')}"
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE_S) as answer:
            print(table(msgspec.json.decode(answer.read(), type=Explanation)))
    except urllib.error.HTTPError as error:
        with error:
            raise PenstockError(f"{config.url} answers HTTP {error.code}: {_said(error.read())}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise PenstockError(f"{config.url} does not answer as a router does: {error}") from error
    return 0


def _said(body: bytes) -> str:
    """The sentence of an error, if it is a router's."""
    try:
        return msgspec.json.decode(body, type=ErrorBody).error.message
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return body.decode(errors="replace")
