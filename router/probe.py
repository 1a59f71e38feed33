"""Whether KV blocks move between workers: tiny real requests, one per pair, that nobody else would make when idle.

A worker that answers /ready proves nothing about transfers. Every ready worker is in at least one pair, and only
workers of one revision are paired, as in placement. The operator asks now and then (condition KVTransferVerified).
"""

import asyncio
import random
import secrets
from collections.abc import Sequence

import aiohttp
from msgspec import Struct

from penstock.errors import PenstockError, RetryableError
from penstock.hop import open_hop
from penstock.protocol import Done, Error, GenerateRequest, Sample, SamplingParams
from penstock.router.policy import ClusterSnapshot, WorkerState

_PROMPT_TOKENS = 24
_PAIR_S = 5.0
_PARALLEL = 8
_FRESH_S = 2.0
"""So long after its end a probe still answers for the same workers: asking often must not cost the workers more."""
_MOST_PAIRS = 16
"""Of large deployments a random part is tried each time: if all of them fail, that still takes less time than the
operator waits for an answer (12 s)."""

Pair = tuple[WorkerState, WorkerState]


class Tried(Struct, frozen=True):
    """What became of one pair."""

    prefill: str
    decode: str
    ok: bool
    blocks: int = 0
    message: str = ""


def pairs_of(cluster: ClusterSnapshot) -> list[Pair]:
    """Prefill and decode workers of equal revisions, so that each worker is in one pair at least."""
    found: list[Pair] = []
    for revision in sorted({worker.revision for worker in cluster.decode}):
        prefill = [worker for worker in cluster.prefill if worker.revision == revision]
        decode = [worker for worker in cluster.decode if worker.revision == revision]
        if prefill and decode:
            count = max(len(prefill), len(decode))
            found += [(prefill[index % len(prefill)], decode[index % len(decode)]) for index in range(count)]
    return found


async def try_pairs(session: aiohttp.ClientSession, pairs: Sequence[Pair], vocab_size: int) -> list[Tried]:
    """Moves the blocks of one small prompt over each pair."""
    limit = asyncio.Semaphore(_PARALLEL)

    async def limited(pair: Pair) -> Tried:
        async with limit:
            return await _try_pair(session, *pair, vocab_size)

    chosen = random.sample(list(pairs), min(len(pairs), _MOST_PAIRS))
    return await asyncio.gather(*(limited(pair) for pair in chosen))


async def _try_pair(
    session: aiohttp.ClientSession, prefill: WorkerState, decode: WorkerState, vocab_size: int
) -> Tried:
    name = secrets.token_hex(8)
    request = GenerateRequest(
        request_id=f"probe-{name}",
        prompt=tuple(random.randrange(vocab_size) for _ in range(_PROMPT_TOKENS)),
        sampling=SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True),
        samples=(Sample(0, 0),),
        salt=f"probe-{name}",  # in nobody's cache, and of use to nobody's
        timeout_s=_PAIR_S,
        prefill=prefill.url,
    )
    try:
        async with asyncio.timeout(_PAIR_S):
            blocks = await _pulled_blocks(session, decode.url, request)
    except TimeoutError:
        return Tried(prefill.url, decode.url, ok=False, message=f"nothing arrived within {_PAIR_S:g} s")
    except PenstockError as error:
        return Tried(prefill.url, decode.url, ok=False, message=str(error))
    said = "" if blocks else "the answer came without a transfer"
    return Tried(prefill.url, decode.url, ok=blocks > 0, blocks=blocks, message=said)


async def _pulled_blocks(session: aiohttp.ClientSession, decode: str, request: GenerateRequest) -> int:
    async with open_hop(session, f"{decode}/generate", request) as hop:
        async for frame in hop.frames():
            if isinstance(frame, Done):
                return frame.pulled_blocks
            if isinstance(frame, Error):
                raise RetryableError(frame.message)
    return 0


class Probe:
    """Of one router: at most one at a time, and none while the last is fresh, however many ask."""

    def __init__(self) -> None:
        self._running: asyncio.Task[list[Tried]] | None = None
        self._urls: list[tuple[str, str]] = []
        self._fresh_until = 0.0

    async def run(self, session: aiohttp.ClientSession, cluster: ClusterSnapshot, vocab_size: int) -> list[Tried]:
        """What became of all pairs."""
        pairs = pairs_of(cluster)
        urls = [(prefill.url, decode.url) for prefill, decode in pairs]
        now = asyncio.get_running_loop().time()
        if self._running is None or (self._running.done() and (urls != self._urls or now > self._fresh_until)):
            self._urls = urls
            self._running = asyncio.create_task(self._try(session, pairs, vocab_size))
        return await asyncio.shield(self._running)

    async def _try(self, session: aiohttp.ClientSession, pairs: list[Pair], vocab_size: int) -> list[Tried]:
        tried = await try_pairs(session, pairs, vocab_size)
        self._fresh_until = asyncio.get_running_loop().time() + _FRESH_S
        return tried
