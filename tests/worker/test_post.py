"""Calls over kept connections, to servers that behave and to those that do not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress

import pytest
import uvloop

from penstock import post
from penstock.post import Answer, Posts

Test = Callable[[], Awaitable[None]]
Run = Callable[[Test], None]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = HEAD + b"3\r\nabc\r\n0\r\n\r\n"


@asynccontextmanager
async def calling(serve: Serve) -> AsyncIterator[tuple[Posts, str]]:
    """Calls, and the URL of a server that has `serve` answer each connection."""
    handlers = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):  # whose connection is cut
            await serve(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    posts = Posts()
    try:
        yield posts, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/generate"
    finally:
        posts.close()
        server.close()
        await asyncio.gather(*filter(None, handlers), return_exceptions=True)


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Routers and workers run on the second; tests of others, and tools, on the first."""

    async def limited(test: Test) -> None:
        async with asyncio.timeout(10):
            await test()

    return lambda test: request.param(limited(test))


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    return head, await reader.readexactly(int(length.partition(b":")[2]))


def says(said: bytes, *, stays: bool = False) -> Serve:
    """Serves one request with these bytes, and then ends, or waits until its caller does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(said)
        if stays:
            await reader.read()

    return serve


async def read_all(answer: Answer) -> bytes:
    parts = []
    while part := await answer.read():
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(("ending", "connections"), [(b"", 1), (b"connection: close\r\n", 3)])
def test_a_connection_serves_as_many_calls_as_its_server_allows(run: Run, ending: bytes, connections: int) -> None:
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while not reader.at_eof():
            head, body = await read_request(reader)
            assert head.startswith(b"POST /generate HTTP/1.1\r\n")
            assert b"\r\ntraceparent: 00-1\r\n" in head
            writer.write(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (ending, len(body), body))
            if ending:
                return

    async def test() -> None:
        async with calling(serve) as (posts, url):
            for number in range(3):
                answer = await posts.post(url, b"%d" % number, {"traceparent": "00-1"})
                assert answer.status == 200
                assert await read_all(answer) == b"%d" % number
                answer.close()
                answer.close()

    run(test)
    assert opened == connections


def test_a_connection_that_is_idle_for_long_is_closed_and_forgotten(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "KEPT_S", 0.1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD)
        await asyncio.sleep(0.2)  # it is not idle while it waits for an answer
        writer.write(WHOLE.removeprefix(HEAD))
        await read_request(reader)
        await asyncio.sleep(0.2)
        writer.write(WHOLE)
        assert await reader.read() == b""

    async def test() -> None:
        async with calling(serve) as (posts, url):
            for _ in range(2):
                answer = await posts.post(url, b"", {})
                assert await read_all(answer) == b"abc"
                answer.close()
                assert posts._idle
            while posts._open:  # noqa: ASYNC110 - until it is closed
                await asyncio.sleep(0.01)
            assert not posts._idle

    run(test)


def test_a_kept_connection_that_its_server_has_closed_is_not_used(run: Run) -> None:
    async def test() -> None:
        async with calling(says(WHOLE)) as (posts, url):
            for _ in range(2):
                answer = await posts.post(url, b"", {})
                assert await read_all(answer) == b"abc"
                answer.close()
                while posts._idle:  # noqa: ASYNC110 - until the end of the connection comes
                    await asyncio.sleep(0.01)

    run(test)


@pytest.mark.parametrize(("said", "connections"), [(b"", 2), (b"HTTP/1.1 2", 1)], ids=["no word", "half an answer"])
def test_a_kept_connection_that_ends_without_a_word_gives_way_to_a_new_one(
    run: Run, said: bytes, connections: int
) -> None:
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await read_request(reader)
        writer.write(WHOLE)
        await read_request(reader)
        writer.write(said)

    async def test() -> None:
        async with calling(serve) as (posts, url):
            (await posts.post(url, b"", {})).close()
            if said:
                with pytest.raises(OSError, match="closed"):
                    await posts.post(url, b"", {})
            else:
                answer = await posts.post(url, b"", {})
                assert await read_all(answer) == b"abc"

    run(test)
    assert opened == connections


def test_a_new_connection_that_ends_without_a_word_is_an_error_at_once(run: Run) -> None:
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
        nonlocal opened
        opened += 1
        await read_request(reader)

    async def test() -> None:
        async with calling(serve) as (posts, url):
            with pytest.raises(OSError, match="closed"):
                await posts.post(url, b"", {})

    run(test)
    assert opened == 1


def test_to_ask_over_a_connection_that_has_just_ended_is_an_error(run: Run) -> None:
    async def test() -> None:
        async with calling(says(WHOLE)) as (posts, url):
            answer = await posts.post(url, b"", {})
            while posts._open:  # noqa: ASYNC110 - until the end of the connection comes
                await asyncio.sleep(0.01)
            with pytest.raises(OSError, match="closed"):
                await answer.ask(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", b"")

    run(test)


def test_a_kept_connection_that_is_just_being_cut_is_not_used(run: Run) -> None:
    async def test() -> None:
        async with calling(says(WHOLE, stays=True)) as (posts, url):
            kept = await posts.post(url, b"", {})
            kept.close()
            kept.cut()  # as its timer does
            assert await read_all(await posts.post(url, b"", {})) == b"abc"

    run(test)


def test_a_plain_connection_is_not_used_for_https(run: Run) -> None:
    first_bytes = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while first := await reader.read(1):
            first_bytes.append(first)
            if first != b"P":
                return
            await read_request(reader)
            writer.write(WHOLE)

    async def test() -> None:
        async with calling(serve) as (posts, url):
            (await posts.post(url, b"", {})).close()
            with pytest.raises(OSError, match=r".*"):
                await posts.post(url.replace("http:", "https:"), b"", {})

    run(test)
    assert first_bytes == [b"P", b"\x16"], "a request, and a TLS handshake"


def test_what_comes_before_the_answer_is_not_the_answer(run: Run) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for early in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\n"):
            await read_request(reader)
            writer.write(early)
            await asyncio.sleep(0.01)
            writer.write(WHOLE)

    async def test() -> None:
        async with calling(serve) as (posts, url):
            for _ in range(2):
                answer = await posts.post(url, b"", {})
                assert answer.status == 200
                assert await read_all(answer) == b"abc"
                answer.close()
                assert posts._idle

    run(test)


def test_a_change_of_protocols_is_an_error(run: Run) -> None:
    change = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"

    async def test() -> None:
        async with calling(says(change)) as (posts, url):
            with pytest.raises(OSError, match="does not speak HTTP"):
                await posts.post(url, b"", {})

    run(test)


def test_a_header_that_cannot_be_sent_leaves_a_kept_connection_alone(run: Run) -> None:
    async def test() -> None:
        async with calling(says(WHOLE, stays=True)) as (posts, url):
            (await posts.post(url, b"", {})).close()
            with pytest.raises(UnicodeEncodeError):
                await posts.post(url, b"", {"tracestate": "\u00e9"})
            assert posts._idle

    run(test)


def test_an_answer_that_is_not_read_to_its_end_takes_its_connection_with_it(run: Run) -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(WHOLE.removesuffix(b"0\r\n\r\n"))
        assert await reader.read() == b""
        gone.set()

    async def test() -> None:
        async with calling(serve) as (posts, url):
            answer = await posts.post(url, b"", {})
            assert await answer.read() == b"abc"
            answer.close()
            await gone.wait()

    run(test)


@pytest.mark.parametrize("said", [b"", HEAD, HEAD + b"3\r\nabc\r\n", b"nonsense\r\n\r\n", HEAD + b"zz\r\n"])
def test_a_broken_answer_is_an_error_whatever_came_before(run: Run, said: bytes) -> None:
    async def test() -> None:
        async with calling(says(said)) as (posts, url):
            with pytest.raises(OSError, match=r"closed|does not speak HTTP"):
                await read_all(await posts.post(url, b"", {}))

    run(test)


def test_nobody_there_is_an_error(run: Run) -> None:
    async def test() -> None:
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await Posts().post("http://127.0.0.1:9/generate", b"", {})

    run(test)


def test_a_large_body_arrives_whole_and_an_early_refusal_ends_it(run: Run) -> None:
    body = bytes(range(256)) * 2**16
    received = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append((await read_request(reader))[1])
        writer.write(WHOLE)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE.replace(b"200 OK", b"413 Too Large"))
        await reader.read()

    async def test() -> None:
        async with calling(take) as (posts, url):
            (await posts.post(url, body, {})).close()
        async with calling(refuse) as (posts, url):
            answer = await posts.post(url, body, {})
            assert answer.status == 413
            assert await read_all(answer) == b"abc"
            answer.close()
            assert not posts._idle, "half of a request is still on it"

    run(test)
    assert received == [body]


def test_what_nobody_reads_stays_with_the_server(run: Run) -> None:
    """Else a client that does not read would have the whole answer wait in memory."""
    sent = 0
    piece = b"%x\r\n%b\r\n" % (2**16, b"x" * 2**16)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(HEAD)
        for _ in range(1000):
            writer.write(piece)
            await writer.drain()
            sent += 2**16
        writer.write(b"0\r\n\r\n")

    async def test() -> None:
        async with calling(serve) as (posts, url):
            answer = await posts.post(url, b"", {})
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 500 * 2**16
            assert len(await read_all(answer)) == 1000 * 2**16
            answer.close()

    run(test)


def test_closing_ends_calls_that_are_under_way(run: Run) -> None:
    async def test() -> None:
        async with calling(says(HEAD, stays=True)) as (posts, url):
            answer = await posts.post(url, b"", {})
            asyncio.get_running_loop().call_later(0.05, posts.close)
            with pytest.raises(OSError, match="closed"):
                await answer.read()

    run(test)


def test_closing_ends_a_call_on_a_kept_connection_for_good(run: Run) -> None:
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await read_request(reader)
        writer.write(WHOLE)
        await reader.read()

    async def test() -> None:
        async with calling(serve) as (posts, url):
            (await posts.post(url, b"", {})).close()
            asyncio.get_running_loop().call_later(0.05, posts.close)
            with pytest.raises(OSError, match="closed"):
                await posts.post(url, b"", {})

    run(test)
    assert opened == 1


def test_a_connection_on_which_half_a_request_was_sent_is_not_used_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refuses before it has read all, and the caller is cancelled in the same turn of the loop."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}")
        await asyncio.sleep(0.1)
        while await reader.read(2**20):
            pass

    async def test() -> None:
        async with calling(serve) as (posts, url):
            asking = asyncio.ensure_future(posts.post(url, b"x" * 50_000_000, {}))
            wake = Answer._wake

            def wake_and_cancel(answer: Answer) -> None:
                wake(answer)
                asking.cancel()

            monkeypatch.setattr(Answer, "_wake", wake_and_cancel)
            with pytest.raises(asyncio.CancelledError):
                await asking
            monkeypatch.setattr(Answer, "_wake", wake)
            assert not posts._idle

    run(test)
