"""A worker's prefix cache without a worker: the engine's own block pool, and event frames as a worker numbers them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from penstock.engine.kv.pool import BlockPool
from penstock.hashing import BlockHasher
from penstock.protocol import Events, Load, StoredBlock
from penstock.router.index.prefix_index import Subscription

SECRET = b"of the workers"


@dataclass
class Running:
    """A sequence that holds blocks."""

    tokens: tuple[int, ...]
    salt: str
    blocks: list[int]
    num_committed: int


@dataclass
class CacheModel:
    """What it holds is the truth; `frames` are what it has said and nobody has read yet."""

    url: str
    num_blocks: int = 12
    block_size: int = 2
    lives: int = 0
    pool: BlockPool = field(init=False)
    running: list[Running] = field(default_factory=list)
    frames: list[Events] = field(default_factory=list)
    sequence: int = 0
    subscription: Subscription | None = None

    def __post_init__(self) -> None:
        self.restart()

    @property
    def generation(self) -> str:
        return f"{self.url} {self.lives}"

    def restart(self) -> None:
        """Another process with an empty cache; whoever read the old one's stream reads no more."""
        self.lives += 1
        self.pool = BlockPool(self.num_blocks)
        self.running, self.frames = [], []

    def hashes(self, tokens: Sequence[int], salt: str) -> list[bytes]:
        hashes: list[bytes] = []
        BlockHasher(SECRET, salt).extend(hashes, tokens, self.block_size)
        return hashes

    def begin(self, tokens: tuple[int, ...], salt: str = "") -> bool:
        """Admits a sequence if its blocks fit."""
        hashes = self.hashes(tokens, salt)
        matched = self.pool.match(hashes[: (len(tokens) - 1) // self.block_size])
        missing = -(-len(tokens) // self.block_size) - len(matched)
        if missing + self.pool.num_unheld(matched) > self.pool.num_free:
            return False
        self.pool.acquire(matched)
        self.running.append(Running(tokens, salt, matched + self.pool.allocate(missing), len(matched)))
        return True

    def compute(self, sequence: Running, num_blocks: int = 1000) -> None:
        """Commits the next blocks of a sequence, as a chunk of a prefill does."""
        hashes = self.hashes(sequence.tokens, sequence.salt)
        root = BlockHasher(SECRET, sequence.salt).root
        stop = min(len(hashes), sequence.num_committed + num_blocks)
        for index in range(sequence.num_committed, stop):
            tokens = sequence.tokens[index * self.block_size : (index + 1) * self.block_size]
            parent, salt = (hashes[index - 1], None) if index else (root, sequence.salt)
            self.pool.commit(sequence.blocks[index], StoredBlock(hashes[index], parent, tokens, salt))
        sequence.num_committed = stop

    def end(self, sequence: Running) -> None:
        self.running.remove(sequence)
        self.pool.free(sequence.blocks)

    def serve(self, tokens: tuple[int, ...], salt: str = "") -> None:
        """A request from its beginning to its end."""
        assert self.begin(tokens, salt)
        self.compute(self.running[-1])
        self.end(self.running[-1])

    def cached_tokens(self, tokens: Sequence[int], salt: str = "", as_of: int = 0) -> int:
        """What a request would find here."""
        usable = (len(tokens) - 1) // self.block_size
        return len(self.pool.match(self.hashes(tokens, salt)[:usable], as_of)) * self.block_size

    def snapshot(self, part_blocks: int = 3) -> None:
        """Says all it holds, to a new subscriber."""
        self.pool.drain_events()
        self.frames, self.sequence = [], 0
        blocks = self.pool.snapshot()
        starts = range(0, max(1, len(blocks)), part_blocks)
        for part, start in enumerate(starts):
            more, stored = start + part_blocks < len(blocks), tuple(blocks[start : start + part_blocks])
            told = Events(**self._head, snapshot=True, part=part, more=more, stored=stored, block_size=2)
            self._say(replace(told, evictions=self.pool.num_evictions))

    def tell(self) -> None:
        """Says what changed since it last said something."""
        stored, removed = self.pool.drain_events()
        told = Events(**self._head, stored=stored, removed=removed, load=Load(num_blocks=self.num_blocks))
        self._say(replace(told, evictions=self.pool.num_evictions))

    @property
    def _head(self) -> dict[str, object]:
        return {"generation": self.generation, "sequence": self.sequence}

    def _say(self, frame: Events) -> None:
        self.frames.append(frame)
        self.sequence += 1
