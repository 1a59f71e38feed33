"""Where requests wait in a simulated router until workers have room: the router's gate with one tenant.

First come, first served, but for those who find no room. What a turn is, what room means and who is tried again are the
router's own code (router/flow/turns.py, room.py, tries.py). Nobody is refused: clients here wait as long as it takes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from penstock.router.flow.gate import MOST_SEEN, POLL_S
from penstock.router.flow.tries import Round, Tried, Tries
from penstock.router.flow.turns import Busy, Turn
from penstock.simulator.clock import Clock, Event

Attempt: TypeAlias = Callable[[Turn], Busy | None]
"""Places a request; None when it need not wait here any more."""


@dataclass(slots=True, eq=False)
class _Waiting:
    attempt: Attempt
    tried: Tried


class Line:
    """One per router."""

    def __init__(self, clock: Clock, has_room: Callable[[Turn], bool]) -> None:
        """`has_room` as Tries takes it."""
        self._clock = clock
        self._tries = Tries(has_room, stopwatch=lambda: 0.0)
        self._waiting: list[_Waiting] = []
        self._look: Event | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, attempt: Attempt) -> None:
        """A request comes."""
        now_s = self._clock.now_s
        waiting = _Waiting(attempt, Tried(now_s))
        busy = None
        if not self._waiting:
            busy = attempt(Turn())
            if busy is None:
                return
            self._tries.in_vain(waiting.tried, busy, now_s, hope=self._tries.has_room(Turn()))
        self._waiting.append(waiting)
        if busy is None:
            self.changed()
        self._look_soon()

    def changed(self) -> None:
        """There may be room now: all who may go go."""
        while self._waiting and self._let_one_through():
            pass

    def _let_one_through(self) -> bool:
        look = Round(self._tries, self._clock.now_s)
        for waiting in self._waiting[:MOST_SEEN]:
            turn = look.turn(waiting.tried, Turn(in_line=len(self._waiting) > 1, waiting=len(self._waiting)), math.inf)
            if turn is None:
                continue
            busy = waiting.attempt(turn)
            if busy is None:
                self._waiting.remove(waiting)
                self._tries.gone(waiting.tried)
                return True
            look.in_vain(waiting.tried, busy, 0.0)
        look.end()
        return False

    def _look_soon(self) -> None:
        """Prompts progress without telling."""
        if self._look is None and self._waiting:
            self._look = self._clock.at(self._clock.now_s + POLL_S, self._tick, is_look=True)

    def _tick(self) -> None:
        self._look = None
        self.changed()
        self._look_soon()
