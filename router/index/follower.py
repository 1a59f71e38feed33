"""Keeps the prefix index true to what workers tell: one open `/events` stream to each, for as long as it is a member.

A stream that breaks, falls silent or skips a frame is opened again, with a pause that grows. A worker whose frames make
no sense is distrusted: nothing it said counts, and it is asked again only now and then. It may still serve requests,
whose frames are checked on their own.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable

import aiohttp
import msgspec
from aiohttp.http_exceptions import LineTooLong

from penstock.errors import WorkerLost, WorkerSilent, reason_of
from penstock.hop import NO_JSON
from penstock.protocol import SILENT_S, Events
from penstock.router.cluster import Cluster, Worker
from penstock.router.index.claims import Claims, Untrue
from penstock.router.index.mirror import BadEvents, Gap
from penstock.router.index.prefix_index import PrefixIndex, Subscription
from penstock.router.metrics import Metrics
from penstock.silence import HeardWithin

MAX_FRAME_BYTES = 4 * 2**20
"""Workers send snapshots in parts of 1024 blocks."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Before a stream that broke is opened again."""
DISTRUST_S, LONGEST_DISTRUST_S = 1.0, 60.0
"""Before a worker that told nonsense, or has no events, is asked again."""
STABLE_S = 10.0
"""After so long without trouble pauses are short again."""
HONEST_S = 600.0
"""The same for one that was found out: nonsense shows at once, but it takes requests to find a lie."""
SWEEP_BLOCKS = 1000
SLICE_S = 0.001

log = logging.getLogger(__name__)

_decode = msgspec.json.Decoder(Events).decode


class Follower:
    """Follows workers. `follow` runs as a task of each member."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        index: PrefixIndex,
        metrics: Metrics,
        heard: Callable[[str, Events], object] = lambda _url, _events: None,
    ) -> None:
        """`heard` is called with every frame that makes sense, for its load and timings."""
        self._session = session
        self._index = index
        self._metrics = metrics
        self._heard = heard
        self._claims: dict[str, Claims] = {}
        """Of those that are followed."""
        self._sweeper: asyncio.Task[None] | None = None

    async def follow(self, worker: Worker, cluster: Cluster) -> None:
        """Follows one worker until cancelled, when it is forgotten."""
        broken = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S, STABLE_S)
        distrusted = Backoff(DISTRUST_S, LONGEST_DISTRUST_S, STABLE_S)
        found_out = Backoff(DISTRUST_S, LONGEST_DISTRUST_S, HONEST_S)
        url, loop = worker.url, asyncio.get_running_loop()
        claims = self._claims[url] = Claims()
        try:
            while True:
                while not worker.ready:
                    await cluster.change().wait()
                began = loop.time()
                try:
                    await self._listen(url, claims)
                except Gap as error:
                    self._count(url, "gap")
                    pause_s = broken.pause_s(loop.time() - began)
                    log.debug("events of %s: %s; subscribing again", url, error)
                except BadEvents as error:
                    self._forget(url, cluster)
                    self._count(url, "nonsense")
                    backoff = found_out if isinstance(error, Untrue) else distrusted
                    pause_s = backoff.pause_s(loop.time() - began)
                    log.warning("%s is not believed about cache and speed for %.0f s: %s", url, pause_s, error)
                except (aiohttp.ClientError, OSError, WorkerLost) as error:
                    self._forget(url, cluster)
                    self._count(url, "lost")
                    pause_s = broken.pause_s(loop.time() - began)
                    log.info("no events of %s: %s", url, reason_of(error))
                except Exception:  # a fault of ours must not leave the worker unfollowed, and its last word true
                    self._forget(url, cluster)
                    self._count(url, "fault")
                    pause_s = distrusted.pause_s(loop.time() - began)
                    log.exception("events of %s could not be applied; again in %.0f s", url, pause_s)
                await asyncio.sleep(pause_s)
        finally:
            if self._claims.get(url) is claims:
                del self._claims[url]
            self._forget(url, cluster)
            self._metrics.event_errors.remove_by_labels({"worker": url})

    def judge(self, url: str, told_tokens: int, found_tokens: int) -> bool:
        """A request found so many cached tokens on a worker that had told of so many. Whether it is still believed: if
        not, it is forgotten at its next frame."""
        claims = self._claims.get(url)
        return claims is None or claims.add(told_tokens, found_tokens)

    async def close(self) -> None:
        """Call when nobody is followed any more."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    async def _listen(self, url: str, claims: Claims) -> None:
        async with HeardWithin(SILENT_S):
            response = await self._session.get(f"{url}/events")
        claims.begin()
        subscription = self._index.subscribe(url)
        try:
            if response.status != 200:
                raise BadEvents(f"it answers HTTP {response.status} to /events")
            share = _Share()
            while True:
                line = await _read_line(response)
                claims.check()
                await self._apply(url, subscription, line, share)
        finally:
            response.close()
            subscription.close()
            self._sweep_soon()

    async def _apply(self, url: str, subscription: Subscription, line: bytes, share: "_Share") -> None:
        dropped = subscription.num_dropped
        with share:
            frame = _decode_frame(line)
            slices = subscription.apply(frame)
        is_over = False
        while not is_over:
            with share:
                is_over = next(slices, slices) is slices
            await share.pause()
        if frame.snapshot:  # a whole one retires what an earlier stream told
            self._sweep_soon()
        if subscription.num_dropped and not dropped:
            log.warning("not all cached blocks of %s are remembered; raise --index-blocks", url)
        with share:
            self._heard(url, frame)

    def _forget(self, url: str, cluster: Cluster) -> None:
        self._index.forget(url)
        cluster.unheard(url)
        self._sweep_soon()

    def _sweep_soon(self) -> None:
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(), name="sweep the prefix index")

    async def _sweep(self) -> None:
        while self._index.sweep(SWEEP_BLOCKS):  # noqa: ASYNC110 - others get their turn between two slices
            await asyncio.sleep(0)

    def _count(self, url: str, reason: str) -> None:
        self._metrics.event_errors.labels(url, reason).inc()


async def _read_line(response: aiohttp.ClientResponse) -> bytes:
    """The next line. Raises WorkerLost when there is none, BadEvents when it is too long."""
    try:
        async with HeardWithin(SILENT_S):
            line: bytes = await response.content.readline(max_line_length=MAX_FRAME_BYTES)
    except TimeoutError as error:
        raise WorkerSilent(f"silent for {SILENT_S} s") from error
    except (LineTooLong, ValueError) as error:
        raise BadEvents(f"a frame of over {MAX_FRAME_BYTES} bytes") from error
    if not line.endswith(b"\n"):
        raise WorkerLost("the stream was cut")
    return line


def _decode_frame(line: bytes) -> Events:
    try:
        return _decode(line)
    except NO_JSON as error:
        raise BadEvents(f"a frame that is not of this protocol: {error}") from error


class _Share:
    """Keeps what one stream costs to a quarter of the event loop's time, however much comes over it.

    Use it as a context around work, and `pause` after it.
    """

    def __init__(self) -> None:
        self._spent_s = self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._spent_s += time.perf_counter() - self._began

    async def pause(self) -> None:
        """Lets others work three times as long, once it is about a millisecond."""
        if self._spent_s > SLICE_S:
            spent_s, self._spent_s = self._spent_s, 0.0
            await asyncio.sleep(3 * spent_s)


class Backoff:
    """Pauses that double, until there was no trouble for `stable_s`."""

    def __init__(self, first_s: float, longest_s: float, stable_s: float) -> None:
        self._first_s, self._longest_s, self._stable_s = first_s, longest_s, stable_s
        self._next_s = first_s

    def pause_s(self, lasted_s: float) -> float:
        """How long to wait, after what had lasted so long went wrong; a little at random, as others wait too."""
        pause_s = self._first_s if lasted_s > self._stable_s else self._next_s
        self._next_s = min(2 * pause_s, self._longest_s)
        return pause_s * random.uniform(0.75, 1.0)
