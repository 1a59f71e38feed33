"""What a client that did not get its answer is told: whether to try again, and when. Pure.

`x-should-retry` is what the SDKs obey before they look at the status: without "false" they repeat every 409, 429 and
5xx, however permanent. `retry-after-ms` says precisely what `retry-after` rounds up to seconds.
"""

import math

from penstock.errors import RequestError, RetryableError

LONGEST_WAIT_S = 120.0
"""OpenAI's SDK gives up at once when it is told to wait longer."""
_USUAL_S = 1.0
"""When an error that may pass does not say how soon."""


def retry_after_of(error: RetryableError) -> float:
    """Seconds after which trying again makes sense."""
    return max(0.001, error.retry_after_s if error.retry_after_s is not None else _USUAL_S)


def advice_headers(error: Exception) -> list[tuple[bytes, bytes]]:
    """Everything but a RetryableError is permanent: the same request would fail again. One that only came too slowly
    (408) need not; when it would come faster nobody knows."""
    if not isinstance(error, RetryableError):
        was_slow = isinstance(error, RequestError) and error.status == 408
        return [(b"x-should-retry", b"true" if was_slow else b"false")]
    wait_s = retry_after_of(error)
    return [
        (b"x-should-retry", b"true"),
        (b"retry-after", b"%d" % math.ceil(wait_s)),
        (b"retry-after-ms", b"%d" % math.ceil(1000 * wait_s)),
    ]


def advised(error: RetryableError) -> str:
    """The error's message with the advice."""
    wait_s = retry_after_of(error)
    if wait_s <= LONGEST_WAIT_S:
        return f"{error}; try again in {wait_s:.3g} s"
    return f"{error}; try again in {wait_s:.0f} s, which is longer than OpenAI's SDK waits by itself (120 s)"
