"""Penstock's errors in Anthropic's form."""

import msgspec
from msgspec import Struct

from penstock.errors import DeadlineExceeded, Overloaded, RateLimited, RequestError, RetryableError
from penstock.router.flow.advice import retry_after_of

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
"""Of wrong requests; all others are `invalid_request_error`."""


class ErrorDetail(Struct):
    type: str
    message: str


class ErrorBody(Struct, tag="error"):
    error: ErrorDetail
    request_id: str | None


def error_body(error: Exception, request_id: str | None) -> bytes:
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`. The message of an unexpected error stays in the
    log."""
    if isinstance(error, RequestError):
        detail = ErrorDetail(_TYPES.get(error.status, "invalid_request_error"), str(error))
    elif isinstance(error, RetryableError):
        detail = ErrorDetail(_kind(error), f"{error}; try again in {retry_after_of(error):.3g} s")
    else:
        detail = ErrorDetail("api_error", "the server failed; the reason is in its log")
    return msgspec.json.encode(ErrorBody(detail, request_id))


def _kind(error: RetryableError) -> str:
    match error:
        case RateLimited():
            return "rate_limit_error"
        case Overloaded():
            return "overloaded_error"
        case DeadlineExceeded():
            return "timeout_error"
        case _:
            return "api_error"
