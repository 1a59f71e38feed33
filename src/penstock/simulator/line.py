"""Where requests wait in a simulated router until workers have room: the router's gate with one tenant.

First come, first served; one that only waits for its best worker holds nobody up. What a turn is and what room means
are the router's own code (router/flow/turns.py, room.py). Nobody is refused: clients here wait as long as it takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from penstock.router.flow.gate import POLL_S
from penstock.router.flow.turns import Busy, Turn
from penstock.simulator.clock import Clock, Event

_MOST_TRIED = 8
"""As the gate: so many are tried at a time, until one can go."""

Attempt: TypeAlias = Callable[[Turn], Busy | None]
"""Places a request; None when it need not wait here any more."""


@dataclass(slots=True, eq=False)
class _Waiting:
    attempt: Attempt
    could_go_since_s: float | None = None
    """To a worker that was not its best."""


class Line:
    """One per router."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._look: Event | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, attempt: Attempt) -> None:
        """A request comes."""
        if not self._waiting and attempt(Turn()) is None:
            return
        self._waiting.append(_Waiting(attempt))
        self.changed()
        self._look_soon()

    def changed(self) -> None:
        """There may be room now: all who may go go, first come, first served."""
        while self._let_one_through():
            pass

    def _look_soon(self) -> None:
        """Prompts progress without telling."""
        if self._look is None and self._waiting:
            self._look = self._clock.at(self._clock.now_s + POLL_S, self._tick, is_look=True)

    def _tick(self) -> None:
        self._look = None
        self.changed()
        self._look_soon()

    def _let_one_through(self) -> bool:
        now_s = self._clock.now_s
        for waiting in self._waiting[:_MOST_TRIED]:
            since_s = waiting.could_go_since_s
            busy = waiting.attempt(
                Turn(
                    is_later=True,
                    in_line=len(self._waiting) > 1,
                    waited_s=0.0 if since_s is None else now_s - since_s,
                )
            )
            if busy is None:
                self._waiting.remove(waiting)
                return True
            if busy.could_go and since_s is None:
                waiting.could_go_since_s = now_s
        return False
