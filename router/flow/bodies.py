"""The memory that request bodies may take, all together: many that are each small enough are too much as well. Pure."""

from types import TracebackType

from penstock.errors import Overloaded


class Bodies:
    """Bodies that are being read or parsed."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.num_bytes = 0

    def hold(self) -> "Held":
        return Held(self)

    def take(self, num_bytes: int) -> None:
        if self.num_bytes + num_bytes > self._most_bytes:
            raise Overloaded(f"request bodies of {self._most_bytes} bytes are being read already", retry_after_s=1.0)
        self.num_bytes += num_bytes


class Held:
    """One body's share. Leaving the block releases it."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._num_bytes = 0

    def __enter__(self) -> "Held":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def add(self, num_bytes: int) -> None:
        """More of it has come. Raises Overloaded when there is no memory for it."""
        self._bodies.take(num_bytes)
        self._num_bytes += num_bytes

    def release(self) -> None:
        """The body is dropped; again and again does no harm."""
        self._bodies.num_bytes -= self._num_bytes
        self._num_bytes = 0
