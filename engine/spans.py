"""What traced requests spent their time on in the engine, collected between two messages to the front."""

import time
from dataclasses import dataclass, field

from penstock.engine.messages import Span
from penstock.engine.sequence import Request


@dataclass(slots=True)
class Spans:
    """Costs one comparison per request and step unless the request is traced."""

    _ended: list[tuple[str, str, float, float, int]] = field(default_factory=list)

    def add(self, request: Request, name: str, began: float, count: int = 0) -> None:
        """`name`, from `began` (time.monotonic) until now."""
        if request.traced:
            self._ended.append((request.wire.request_id, name, began, time.monotonic(), count))

    def drain(self) -> tuple[Span, ...]:
        """All since the last call."""
        if not self._ended:
            return ()
        ended, self._ended = self._ended, []
        now = time.monotonic()
        return tuple(
            Span(request_id, name, end - began, now - end, count) for request_id, name, began, end, count in ended
        )
