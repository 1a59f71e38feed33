"""The router's prefix index and what comes before it: memory, events, matching, the next turn of a long conversation.

    python -m bench.prefix_index [--blocks 5000000]

One process, one core, no network: event frames are decoded from the bytes that workers send.
"""

import argparse
import asyncio
import gc
import os
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.report import Report, Row, compare, percentile
from penstock.demo import MODEL_FOLDER
from penstock.hashing import BlockHasher
from penstock.protocol import Events, Load, StoredBlock, encode_line
from penstock.router.config import RouterConfig
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.patience import Patience
from penstock.router.flow.tenants import ANYONE
from penstock.router.index.keys import PromptKeys
from penstock.router.index.prefix_index import PrefixIndex, Subscription
from penstock.router.openai.prepare import prepare_chat
from penstock.router.services import Services

BLOCK_TOKENS = 16
SEQUENCE_BLOCKS = 64
PROMPT_TOKENS = 100_000
WORKERS = 64
VOCABULARY = range(150_000)

_decode = msgspec.json.Decoder(Events).decode


class Worker:
    """Makes the frames of one worker: sequences of random tokens, each block with its chained hash."""

    def __init__(self, number: int) -> None:
        self.url = f"http://worker-{number}"
        self._rng = random.Random(number)
        self._hasher = BlockHasher(b"bench", "")
        self._sequence = 0

    def sequence(self, num_blocks: int = SEQUENCE_BLOCKS) -> list[StoredBlock]:
        tokens = self._rng.choices(VOCABULARY, k=num_blocks * BLOCK_TOKENS)
        hashes: list[bytes] = []
        self._hasher.extend(hashes, tokens, BLOCK_TOKENS)
        return blocks_of(hashes, tokens, self._hasher.root)

    def line(self, stored: list[StoredBlock], removed: tuple[bytes, ...] = ()) -> bytes:
        first = self._sequence == 0
        frame = Events(
            generation="g",
            sequence=self._sequence,
            snapshot=first,
            block_size=BLOCK_TOKENS if first else 0,
            stored=tuple(stored),
            removed=removed,
            load=Load(num_blocks=10_000_000),
        )
        self._sequence += 1
        return encode_line(frame)


def blocks_of(hashes: list[bytes], tokens: list[int], root: bytes) -> list[StoredBlock]:
    return [
        StoredBlock(
            name,
            hashes[index - 1] if index else root,
            tuple(tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]),
            None if index else "",
        )
        for index, name in enumerate(hashes)
    ]


def apply(subscription: Subscription, line: bytes) -> None:
    for _ in subscription.apply(_decode(line)):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=5_000_000, help="blocks for the memory row (default: 5000000)")
    arguments = parser.parse_args()
    report = Report("prefix_index")
    report.rows += [events(), *matching(), *next_turn(), forgetting(), *memory(arguments.blocks)]
    report.finish()


def events() -> Row:
    """Stored and removed blocks in the sizes that engine steps have, from bytes to the table."""
    index, worker = PrefixIndex(10_000_000), Worker(0)
    subscription = index.subscribe(worker.url)
    apply(subscription, worker.line([]))
    lines, count = [], 0
    old: list[tuple[bytes, ...]] = []
    for _ in range(2_000):
        stored = worker.sequence()
        removed = old.pop(0) if len(old) > 500 else ()
        lines.append(worker.line(stored, removed))
        count += len(stored) + len(removed)
        old.append(tuple(block.hash for block in reversed(stored)))
    gc.collect()
    began = time.process_time()
    for line in lines:
        apply(subscription, line)
    per_s = count / (time.process_time() - began)
    assert len(index) == sum(map(len, old))
    return Row("events applied on one core", "1/s", per_s, target="ours >= 100000", met=per_s >= 100_000)


def million_blocks() -> tuple[PrefixIndex, list[str], list[int]]:
    """An index of 64 workers, their URLs, and the tokens of a prompt that each has in part and the first has whole."""
    index, workers = PrefixIndex(10_000_000), [Worker(number) for number in range(WORKERS)]
    subscriptions = [index.subscribe(worker.url) for worker in workers]
    for worker, subscription in zip(workers, subscriptions, strict=True):
        apply(subscription, worker.line([]))
    long = Worker(1000).sequence(PROMPT_TOKENS // BLOCK_TOKENS)
    rng = random.Random(3)
    for worker, subscription in zip(workers, subscriptions, strict=True):
        apply(subscription, worker.line(long[: rng.randrange(len(long))]))
        while len(subscription._mirror.known) < 1_300_000 // WORKERS:
            apply(subscription, worker.line(worker.sequence()))
    apply(subscriptions[0], workers[0].line(long))
    assert len(index) >= 1_000_000
    return index, [worker.url for worker in workers], [token for block in long for token in block.tokens] + [1]


def matching() -> list[Row]:
    """A prompt of 100,000 tokens against a million blocks."""
    index, urls, tokens = million_blocks()
    keys = PromptKeys("", tokens)
    keys.of(BLOCK_TOKENS)
    times = []
    for _ in range(1_000):
        began = time.perf_counter()
        found = index.match(keys)
        times.append(1e3 * (time.perf_counter() - began))
    assert found[urls[0]] == len(tokens) - 1
    assert len(found) == WORKERS
    hashing = []
    for _ in range(20):
        began = time.process_time()
        PromptKeys("", tokens).of(BLOCK_TOKENS)
        hashing.append(1e3 * (time.process_time() - began))
    what = f"{PROMPT_TOKENS:,} tokens matched against {WORKERS} workers, {len(index):,} blocks"
    return [
        compare(f"{what}, p50", "ms", percentile(times, 50)),
        compare(f"{what}, p99", "ms", percentile(times, 99), limit=1.0),
        compare(f"keys of {PROMPT_TOKENS:,} tokens, all new", "ms", percentile(hashing, 50)),
    ]


def forgetting() -> Row:
    """What the event loop waits for when a worker with a million blocks goes."""
    index, worker = PrefixIndex(10_000_000), Worker(0)
    subscription = index.subscribe(worker.url)
    apply(subscription, worker.line([]))
    for _ in range(1_000_000 // SEQUENCE_BLOCKS):
        apply(subscription, worker.line(worker.sequence()))
    longest, began = 0.0, time.perf_counter()
    index.forget(worker.url)
    while True:
        longest = max(longest, time.perf_counter() - began)
        began = time.perf_counter()
        if not index.sweep(1_000):
            break
    assert len(index) == 0
    return compare("longest slice of forgetting a worker with 1,000,000 blocks", "ms", 1e3 * longest, limit=5.0)


def memory(num_blocks: int) -> list[Row]:
    """Resident memory of so many blocks on 64 workers, from a child that holds nothing else."""
    rows = []
    for what, holders in (("each on one worker", 1), ("each on two workers", 2)):
        count = num_blocks // holders
        grown = in_child(count, holders)
        limit = 1e9 if holders == 1 else None
        rows.append(compare(f"memory of {count:,} blocks, {what}", "bytes", grown, limit=limit))
        rows.append(compare(f"memory per block, {what}", "bytes", grown / count))
    return rows


def in_child(count: int, holders: int) -> float:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, str(fill(count, holders)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as result:
        grown = float(result.read())
    os.waitpid(pid, 0)
    return grown


def fill(count: int, holders: int) -> int:
    index, workers = PrefixIndex(4 * count), [Worker(number) for number in range(WORKERS)]
    subscriptions = [index.subscribe(worker.url) for worker in workers]
    for worker, subscription in zip(workers, subscriptions, strict=True):
        apply(subscription, worker.line([]))
    before = resident_bytes()
    for number, stored in enumerate(sequences(count)):
        for other in range(holders):
            at = (number + other) % WORKERS
            apply(subscriptions[at], workers[at].line(stored))
    assert len(index) >= count
    gc.collect()
    return resident_bytes() - before


def sequences(count: int) -> Iterator[list[StoredBlock]]:
    maker = Worker(12_345)
    for _ in range(-(-count // SEQUENCE_BLOCKS)):
        yield maker.sequence()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def next_turn() -> list[Row]:
    """CPU of the next turns of a conversation of 100,000 tokens, up to placement: parse, render, tokenize, keys."""
    whole, turns, num_tokens = asyncio.run(converse())
    what = f"next turn of a conversation of {num_tokens:,} tokens"
    return [
        compare(f"{what}: CPU before placement, p50", "ms", percentile(turns, 50), limit=10.0),
        compare(f"{what}: CPU before placement, largest of {len(turns)}", "ms", max(turns), limit=10.0),
        compare("the same conversation when it is new: CPU before placement", "ms", whole),
    ]


async def converse() -> tuple[float, list[float], int]:
    """Milliseconds of the whole conversation when it is new, of each further turn, and its tokens."""
    rng = random.Random(7)
    words = [("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 10)))) for _ in range(5_000)]

    def message(role: str, num_words: int) -> dict[str, str]:
        return {"role": role, "content": " ".join(rng.choices(words, k=num_words)) + "."}

    services = Services(RouterConfig(model=str(MODEL_FOLDER), max_context_tokens=2**20))
    async with services.running():
        messages = [message("system", 300)]
        while sum(len(each["content"]) for each in messages) < 1.3 * PROMPT_TOKENS:
            messages += [message("user", 60), message("assistant", 200)]
        messages.append(message("user", 60))
        whole, num_tokens = await prepared(services, messages)
        turns = []
        for _ in range(30):
            messages += [message("assistant", 200), message("user", 60)]
            turns.append((await prepared(services, messages))[0])
    return whole, turns, num_tokens


async def prepared(services: Services, messages: list[dict[str, str]]) -> tuple[float, int]:
    """CPU milliseconds from the request's body to the keys of its prompt, and the prompt's length."""
    body = msgspec.json.encode({"model": services.model.name, "messages": messages, "max_tokens": 1})
    began = time.process_time()
    call = await prepare_chat(services, Arrival("bench", ANYONE, Patience(60, 60, 15), 0.0, body))
    [generation] = call.generations
    PromptKeys("", generation.prompt).of(BLOCK_TOKENS)
    return 1e3 * (time.process_time() - began), len(generation.prompt)


if __name__ == "__main__":
    main()
