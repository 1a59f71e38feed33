"""Names the field of a body that is not JSON in UTF-8, where that can be said: NaN, infinity, broken Unicode. Pure."""

import json
import math
from typing import Any

_MOST_BYTES = 2**16
"""Parsing takes 1 ms; a longer body would hold up other streams for the sake of a better message."""


def find_fault(body: bytes) -> tuple[str, str] | None:
    """(field, reason): of the body, or of the first value that Python's lenient parser takes though it is not JSON."""
    if not body:
        return "", "it is empty"
    if len(body) > _MOST_BYTES:
        return None
    try:
        return _fault_in(json.loads(body.decode(errors="surrogatepass")), "")
    except UnicodeDecodeError as error:
        return "", f"byte {error.start} is not UTF-8"
    except (ValueError, RecursionError):
        return None


def _fault_in(value: Any, field: str) -> tuple[str, str] | None:
    if isinstance(value, float) and not math.isfinite(value):
        return field, f"{value} is not a number in JSON"
    if isinstance(value, str) and not _is_unicode(value):
        return field, "half of a surrogate pair is not Unicode text"
    parts: list[tuple[str, Any]] = []
    if isinstance(value, list):
        parts = [(f"{field}[{index}]", part) for index, part in enumerate(value)]
    elif isinstance(value, dict):
        if not all(map(_is_unicode, value)):
            return field, "half of a surrogate pair in a field's name is not Unicode text"
        parts = [(f"{field}.{key}".removeprefix("."), part) for key, part in value.items()]
    return next((fault for name, part in parts if (fault := _fault_in(part, name)) is not None), None)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
