"""Whether what a worker tells of its cache comes true. Hashes that lie make sense: only requests find them out."""

from collections import deque

from penstock.router.index.mirror import BadEvents

WINDOW = 16
"""Requests that a worker's word is judged by."""
SLACK_TOKENS = 64
"""Few blocks are no matter: they are evicted at any time."""


class Untrue(BadEvents):
    """Most of the last requests did not find what the worker had told of."""


class Claims:
    """One worker's."""

    def __init__(self) -> None:
        self._came_true: deque[bool] = deque(maxlen=WINDOW)
        self._is_caught = False
        self._is_reported = False

    def add(self, told_tokens: int, found_tokens: int) -> bool:
        """A request found so many tokens of its prompt in the cache. Whether the worker is still believed."""
        if told_tokens > SLACK_TOKENS and not self._is_caught:
            self._came_true.append(told_tokens <= 2 * found_tokens + SLACK_TOKENS)
            self._is_caught = self._came_true.count(False) > WINDOW // 2
        return not self._is_caught

    def check(self) -> None:
        """Raises Untrue when the worker was found out."""
        if self._is_caught:
            self._is_reported = True
            raise Untrue(f"most of {WINDOW} requests found far less in its cache than it had told of")

    def begin(self) -> None:
        """The worker is listened to again: after it was found out and that was said, a new judgement."""
        if self._is_reported:
            self._came_true.clear()
            self._is_caught = self._is_reported = False
