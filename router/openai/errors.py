"""Penstock's errors in OpenAI's form."""

import msgspec

from penstock.errors import RequestError, RetryableError
from penstock.router.openai.responses import ErrorBody, ErrorDetail


def error_status(error: Exception) -> int:
    """The HTTP status: the request's own, 503 for what may be tried again, 500 for what should not happen."""
    if isinstance(error, RequestError):
        return error.status
    return 503 if isinstance(error, RetryableError) else 500


def error_body(error: Exception) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`. The message of an unexpected error stays in the log."""
    if isinstance(error, RequestError):
        detail = ErrorDetail(str(error), "invalid_request_error", error.field, error.code)
    elif isinstance(error, RetryableError):
        detail = ErrorDetail(f"{error}; try again", "server_error", None, error.code)
    else:
        detail = ErrorDetail("the server failed; the reason is in its log", "server_error", None, "internal")
    return msgspec.json.encode(ErrorBody(detail))
