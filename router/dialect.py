"""Which API a request speaks, and so in whose form it is told of an error: the one place that decides it. Pure.

Anthropic's if its client says `anthropic-version`, as Anthropic's SDK does on every path, or asks a path that only
that API has; else OpenAI's.
"""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Scope

from penstock.router.anthropic import errors as anthropic
from penstock.router.http import header
from penstock.router.openai import errors as openai


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one API tells of errors."""

    error_body: Callable[[Exception, str | None], bytes]
    """Given the id of the request, if it has one."""
    id_headers: tuple[bytes, ...]
    """Where every answer says that id; Anthropic's clients look for it in the second."""


OPENAI = Dialect(lambda error, _: openai.error_body(error), (b"x-request-id",))
ANTHROPIC = Dialect(anthropic.error_body, (b"x-request-id", b"request-id"))


def dialect_of(scope: Scope | None) -> Dialect:
    """`scope` may lack its path, when its headers have not ended, or be None, before they begin."""
    if scope is None:
        return OPENAI
    path = scope.get("path", "")
    is_anthropic = path == "/v1/messages" or path.startswith("/v1/messages/")
    return ANTHROPIC if is_anthropic or header(scope, b"anthropic-version") is not None else OPENAI
