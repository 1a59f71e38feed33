"""Stop strings over streamed text: nothing that may turn out to be the start of one is let out.

Each stop string is matched by its Knuth-Morris-Pratt automaton, one character at a time, so that the result does not
depend on how the text was cut into deltas and each character costs the same.
"""

from collections.abc import Sequence
from functools import lru_cache


class StopStrings:
    """Scans one answer. After `stopped`, push nothing more."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._automata = [_Automaton(stop) for stop in stops]
        self._held = ""
        self.stopped = False

    def push(self, text: str, *, may_stop: bool = True) -> str:
        """The text that is certain to be part of the answer. The stop string that ends it never is.

        Without `may_stop` one that ends in `text` does not count, but one that begins there does.
        """
        if not self._automata:
            return text
        text = self._held + text
        for index in range(len(self._held), len(text)):
            char = text[index]
            complete = [len(automaton.stop) for automaton in self._automata if automaton.advance(char)]
            if complete and may_stop:
                self.stopped = True
                self._held = ""
                return text[: index + 1 - max(complete)]
        hold = max(automaton.matched for automaton in self._automata)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """The text that was held back, now that no more comes."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """`matched` is the length of the longest start of `stop`, shorter than itself, that the text ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = _borders(stop)

    def advance(self, char: str) -> bool:
        """True when the text now ends with the whole stop string."""
        while self.matched and self.stop[self.matched] != char:
            self.matched = self._fallback[self.matched - 1]
        if self.stop[self.matched] == char:
            self.matched += 1
        if self.matched < len(self.stop):
            return False
        self.matched = self._fallback[-1]
        return True


@lru_cache(maxsize=64)  # every answer of a request has the same stop strings
def _borders(word: str) -> tuple[int, ...]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(word)
    length = 0
    for index in range(1, len(word)):
        while length and word[index] != word[length]:
            length = borders[length - 1]
        if word[index] == word[length]:
            length += 1
        borders[index] = length
    return tuple(borders)
