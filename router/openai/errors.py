"""Penstock's errors in OpenAI's form."""

import difflib
from collections.abc import Iterable

import msgspec

from penstock.errors import RateLimited, RequestError, RetryableError
from penstock.router.flow.advice import advised
from penstock.router.openai.responses import ErrorBody, ErrorDetail

_LONGEST_NAME = 64
"""Of a field that a client made up, as it is told of it."""


def error_status(error: Exception) -> int:
    """The HTTP status: the request's own, 503 or 429 for what may be tried again, 500 for what should not happen."""
    if isinstance(error, RequestError):
        return error.status
    return error.status if isinstance(error, RetryableError) else 500


def named_for_api(error: RequestError, prompt_field: str, max_tokens_field: str) -> RequestError:
    """A worker's refusal, with the field as the client called it; the last two arguments depend on the request."""
    wire = (error.field or "").removeprefix("sampling.").partition("[")[0]
    names = {
        "": None,
        "prompt": prompt_field,
        "max_tokens": max_tokens_field,
        "samples": "n",
        "salt": "cache_salt",
        "timeout_s": "timeout",
    }
    return RequestError(str(error), field=names.get(wire, wire), code=error.code, status=error.status)


def unknown_field(name: str, parent: str | None, known: Iterable[str]) -> RequestError:
    """For a field of the object `parent` (None: the body) that nothing here reads; says which it might have meant."""
    name = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "it is not a parameter of this endpoint"
    field = f"{parent}.{name}" if parent else name
    return RequestError(f"unknown field {field!r}; {hint}", field=field, code="unknown_parameter")


def error_body(error: Exception) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`. The message of an unexpected error stays in the log."""
    if isinstance(error, RequestError):
        detail = ErrorDetail(str(error), "invalid_request_error", error.field, error.code)
    elif isinstance(error, RetryableError):
        kind = "rate_limit_error" if isinstance(error, RateLimited) else "server_error"
        detail = ErrorDetail(advised(error), kind, None, error.code)
    else:
        detail = ErrorDetail("the server failed; the reason is in its log", "server_error", None, "internal")
    return msgspec.json.encode(ErrorBody(detail))
