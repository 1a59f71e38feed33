"""What one turn of the event loop writes to a client leaves in one piece, and nothing is lost at the end."""

import asyncio
from collections.abc import Callable

from penstock.router.corked import Corked


class Wire(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.ended = ""

    def write(self, data: "bytes | bytearray | memoryview[int]") -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return bool(self.ended)

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def get_write_buffer_size(self) -> int:
        return 7


def written(act: Callable[[Corked], None]) -> Wire:
    """What became of a connection after `act` and one turn of the loop."""

    async def run() -> Wire:
        wire = Wire()
        act(Corked(wire, asyncio.get_running_loop()))
        await asyncio.sleep(0)
        return wire

    return asyncio.run(run())


def test_writes_of_one_turn_leave_together_and_in_order() -> None:
    def act(corked: Corked) -> None:
        for part in (b"head", b"event", b"end"):
            corked.write(part)
        assert corked.get_write_buffer_size() == 7 + 12

    assert written(act).written == [b"headeventend"]


def test_much_leaves_at_once_so_that_the_transport_can_say_stop() -> None:
    def act(corked: Corked) -> None:
        corked.write(b"a")
        corked.write(b"b" * 2**16)
        assert corked.get_write_buffer_size() == 7
        corked.write(b"c")

    assert written(act).written == [b"a" + b"b" * 2**16, b"c"]


def test_closing_writes_the_rest_first_and_aborting_drops_it() -> None:
    def close(corked: Corked) -> None:
        corked.write(b"last word")
        corked.close()

    def abort(corked: Corked) -> None:
        corked.write(b"never")
        corked.abort()

    assert (written(close).written, written(close).ended) == ([b"last word"], "closed")
    assert (written(abort).written, written(abort).ended) == ([], "aborted")


def test_nothing_is_written_to_a_connection_that_has_ended() -> None:
    def act(corked: Corked) -> None:
        corked.write(b"too late")
        corked._transport.close()

    assert written(act).written == []
