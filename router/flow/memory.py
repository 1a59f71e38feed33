"""Memory that requests share: many that are each small enough are too much as well. Pure."""

from types import TracebackType

from penstock.errors import Overloaded


class Memory:
    """For one kind of thing, measured in whatever unit."""

    def __init__(self, most: int, full: str) -> None:
        """`full` is what those are told for whom there is none."""
        self._most = most
        self._full = full
        self.taken = 0

    def hold(self) -> "Held":
        return Held(self)

    def take(self, amount: int) -> None:
        if self.taken + amount > self._most:
            raise Overloaded(self._full, retry_after_s=1.0)
        self.taken += amount


class Held:
    """One request's share. Leaving the block releases it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._amount = 0

    def __enter__(self) -> "Held":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def add(self, amount: int) -> None:
        """More of it has come. Raises Overloaded when there is no memory for it."""
        self._memory.take(amount)
        self._amount += amount

    def release(self) -> None:
        """It is dropped; again and again does no harm."""
        self._memory.taken -= self._amount
        self._amount = 0
