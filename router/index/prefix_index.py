"""What placement asks: how much of a prompt does each worker have, counting what it was just given to compute.

Each worker's own account (mirror.py) is the truth; an expectation fills the time until the worker tells of what it was
given, and ends with that, or with its failure. Memory is bounded by `max_blocks`, of which every worker has its share:
a block takes at most 200 bytes, and 130 for each further worker that holds it (bench.prefix_index).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import length_hint

from penstock.protocol import Events
from penstock.router.index.holders import Holders
from penstock.router.index.keys import PromptKeys
from penstock.router.index.mirror import Gap, Mirror

SLICE = 512
"""Blocks that are applied in one go: about a millisecond."""


class Expectation:
    """Blocks that a worker is about to hold. Those it has not told of when this is retracted, it does not hold."""

    def __init__(self, index: "PrefixIndex", url: str) -> None:
        self._index = index
        self._url = url
        self.keys: list[int] = []
        self.is_pending = True
        """Until the worker holds them, though it may not have told."""

    def retract(self) -> None:
        """Call at failure, and when the worker has had time to tell. Twice does no harm."""
        self._index._retract(self._url, self)
        self.keys = []


@dataclass(slots=True, eq=False)
class _Worker:
    mirror: Mirror | None = None
    expected: dict[int, Expectation] = field(default_factory=dict)


class PrefixIndex:
    """All workers' caches."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._holders = Holders()
        self._workers: dict[str, _Worker] = {}
        self._url_of: dict[int, str] = {}
        """Of the bits that count now."""
        self._bits: dict[int, int] = {}
        """Block size -> mask of the workers with that size."""

    def __len__(self) -> int:
        """Blocks that some worker holds or held, each counted once."""
        return len(self._holders.masks)

    def match(self, prompt: PromptKeys) -> dict[str, int]:
        """Per worker URL, how many tokens of the prompt it will find in its cache. Workers that have none are left out.

        The last token is never among them: whoever computes the prompt needs its logits.
        """
        found: dict[str, int] = {}
        masks = self._holders.masks
        for size, held in self._bits.items():
            most = (prompt.num_tokens - 1) // size
            keys = iter(prompt.of(size)[:most])
            for mask, _ in groupby(map(masks.get, keys)):  # runs of blocks have equal sets
                still = held & (mask or 0)
                if still != held:
                    self._note(found, held & ~still, (most - 1 - length_hint(keys)) * size)
                    held = still
                    if not held:
                        break
            self._note(found, held, most * size)
        return found

    def pending(self, prompt: PromptKeys, found: Mapping[str, int]) -> frozenset[str]:
        """Those of the workers that `match` has found which are still to compute or to pull some of it."""
        pending = set()
        for url, tokens in found.items():
            worker = self._workers[url]
            if worker.expected and worker.mirror is not None:
                size = worker.mirror.block_size
                last = worker.expected.get(prompt.of(size)[tokens // size - 1])  # a prompt is computed in order
                if last is not None and last.is_pending:
                    pending.add(url)
        return frozenset(pending)

    def as_of(self, url: str) -> int:
        """How many of a worker's evictions `match` takes into account: the worker is told with the request, since it
        may have evicted more by then."""
        worker = self._workers.get(url)
        return 0 if worker is None or worker.mirror is None else worker.mirror.evictions

    def expect(self, url: str, prompt: PromptKeys) -> Expectation:
        """`url` is about to hold all full blocks of `prompt`."""
        expectation = Expectation(self, url)
        worker = self._workers.get(url)
        if worker is not None and worker.mirror is not None and worker.mirror.block_size:
            masks, bit = self._holders.masks, worker.mirror.bit
            for key in prompt.of(worker.mirror.block_size):
                mask = masks.get(key, 0)
                if mask & bit:
                    continue
                if mask:
                    self._holders.add(key, bit)
                else:
                    masks[key] = bit
                worker.expected[key] = expectation
                expectation.keys.append(key)
        return expectation

    def forget(self, url: str) -> None:
        """`url` holds nothing that we know of."""
        worker = self._workers.pop(url, None)
        if worker is not None and worker.mirror is not None:
            self._retire(worker.mirror, worker.expected)

    def met(self, url: str, generation: str) -> None:
        """The process of this generation answers at `url`: what another one held there is gone."""
        worker = self._workers.get(url)
        if worker is not None and worker.mirror is not None and worker.mirror.generation != generation:
            self.forget(url)

    def subscribe(self, url: str) -> "Subscription":
        """For what comes over a new stream of `url`'s events."""
        self._workers.setdefault(url, _Worker())  # from now on it has a share of the memory
        return Subscription(self, url, Mirror(self._holders))

    def sweep(self, at_most: int) -> bool:
        """Frees the memory of up to so many forgotten blocks. False when nothing is left to do."""
        return self._holders.sweep(at_most)

    def _note(self, found: dict[str, int], mask: int, tokens: int) -> None:
        """All workers of `mask` have so many tokens."""
        while mask and tokens:
            bit = mask & -mask
            found[self._url_of[bit]] = tokens
            mask ^= bit

    def _retract(self, url: str, expectation: Expectation) -> None:
        worker = self._workers.get(url)
        if worker is None or worker.mirror is None:
            return
        for key in expectation.keys:
            if worker.expected.get(key) is expectation:
                del worker.expected[key]
                self._holders.discard(key, worker.mirror.bit)

    def _room(self, mirror: Mirror) -> int:
        """How many blocks a worker may have here: its share, and no more than there is room for."""
        return min(self._share, len(mirror.known) + max(0, self._max_blocks - len(self)))

    @property
    def _share(self) -> int:
        return self._max_blocks // max(1, len(self._workers))

    def _make_room(self, mirror: Mirror, wanted: int) -> None:
        """For so many more blocks, as far as they are within the worker's share, where others have more than theirs:
        they came when they were fewer."""
        lacking = min(wanted, self._share - len(mirror.known)) - (self._max_blocks - len(self))
        if lacking <= 0:
            return
        for other in [each.mirror for each in self._workers.values() if each.mirror is not None]:
            excess = max(0, len(other.known) - self._share)
            lacking -= other.drop(min(lacking, excess))

    def _install(self, url: str, mirror: Mirror) -> None:
        """From now on `mirror` says what `url` holds; expectations that it does not confirm stay expectations."""
        worker = self._workers.setdefault(url, _Worker())
        before, worker.mirror = worker.mirror, mirror
        if before is not None:
            self._retire(before, worker.expected)
        for key in [key for key in worker.expected if self._holders.masks.get(key, 0) & mirror.bit]:
            del worker.expected[key]
        for key in worker.expected:
            self._holders.add(key, mirror.bit)
        mirror.expected = worker.expected
        self._url_of[mirror.bit] = url
        if mirror.block_size:
            self._bits[mirror.block_size] = self._bits.get(mirror.block_size, 0) | mirror.bit

    def _retire(self, mirror: Mirror, expected: Iterable[int] = ()) -> None:
        """What `mirror` said counts no more, at once."""
        mirror.is_retired = True
        self._url_of.pop(mirror.bit, None)
        if left := self._bits.pop(mirror.block_size, 0) & ~mirror.bit:
            self._bits[mirror.block_size] = left
        self._holders.forget(mirror.bit, chain(mirror.known.values(), list(expected)))


class Subscription:
    """One stream of a worker's events. Until its snapshot is whole, what was known of the worker before counts."""

    def __init__(self, index: PrefixIndex, url: str, mirror: Mirror) -> None:
        self._index = index
        self._url = url
        self._mirror = mirror

    @property
    def num_dropped(self) -> int:
        """Blocks that the worker holds and that were not remembered for want of room; their children not counted."""
        return self._mirror.num_dropped

    def apply(self, frame: Events) -> Iterator[None]:
        """Applies the next frame slice by slice, so that a long one need not hold up the event loop.

        Raises Gap when a new subscription is needed, BadEvents when the worker is not to be believed.
        """
        index, mirror = self._index, self._mirror
        self._check_wanted()
        mirror.begin(frame)
        index.met(self._url, mirror.generation)
        for start in range(0, len(frame.removed), SLICE):
            mirror.remove(frame.removed[start : start + SLICE])
            yield
            self._check_wanted()
        for start in range(0, len(frame.stored), SLICE):
            stored = frame.stored[start : start + SLICE]
            index._make_room(mirror, len(stored))
            mirror.store(stored, index._room(mirror))
            yield
            self._check_wanted()
        mirror.end(frame)
        if mirror.is_complete and not mirror.is_installed:
            mirror.is_installed = True
            index._install(self._url, mirror)

    def close(self) -> None:
        """The stream has ended. What it told stays true until the worker is forgotten or subscribed to again."""
        if not self._mirror.is_installed:
            self._index._retire(self._mirror)

    def _check_wanted(self) -> None:
        if self._mirror.is_retired:
            raise Gap("the worker was forgotten meanwhile")
