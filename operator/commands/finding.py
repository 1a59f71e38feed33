"""One line of what `penstock doctor` reports."""

from typing import Literal, NamedTuple

Verdict = Literal["ok", "warn", "FAIL"]


class Finding(NamedTuple):
    """What was looked at, and what is to be said of it."""

    verdict: Verdict
    what: str
    said: str
