"""How long a client waits: the deadline it names, or the one that its SDK tells of by itself. Pure.

OpenAI's and Anthropic's SDKs send `x-stainless-read-timeout`, the seconds after which they give up a connection that
brings no byte (600 unless the program says otherwise). For an answer in one piece that is its deadline. A stream lives
as long as something comes: it gets a comment before the client would give up.
"""

import math
from dataclasses import dataclass

from starlette.types import Scope

from penstock.errors import RequestError
from penstock.router.http import header

_SOONEST_S = 0.1
"""Between two comments, however impatient the client."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Of one request, in seconds from its arrival."""

    whole_s: float
    """Until an answer in one piece must be complete."""
    stream_s: float
    """Until a stream must have ended."""
    silence_s: float
    """Longest pause of a stream, also before its first byte."""

    @property
    def longest_s(self) -> float:
        """As long as it is not known which of the two the request asks for."""
        return max(self.whole_s, self.stream_s)

    def limit_s(self, *, stream: bool) -> float:
        return self.stream_s if stream else self.whole_s


def patience_of(scope: Scope, *, default_s: float, longest_s: float, silence_s: float) -> Patience:
    """From the headers `timeout` and `x-stainless-read-timeout`, else `default_s`.

    Raises RequestError for a `timeout` outside (0, `longest_s`]; what an SDK sends by itself is never an error.
    """
    named_s = _named(scope, longest_s)
    read_s = _read_timeout(scope)
    whole_s = named_s or min(read_s or default_s, longest_s)
    silence_s = min(silence_s, max(_SOONEST_S, read_s / 2)) if read_s else silence_s
    return Patience(whole_s, named_s or default_s, silence_s)


def _named(scope: Scope, longest_s: float) -> float | None:
    text = header(scope, b"timeout")
    if text is None:
        return None
    timeout_s = _number(text)
    if not 0 < timeout_s <= longest_s:
        raise RequestError(f"the timeout header must be seconds in (0, {longest_s:g}], not {text!r}", field="timeout")
    return timeout_s


def _read_timeout(scope: Scope) -> float | None:
    """None as well for what is no positive number: a client without a limit sends none, or a word."""
    read_s = _number(header(scope, b"x-stainless-read-timeout") or "")
    return read_s if 0 < read_s < math.inf else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
