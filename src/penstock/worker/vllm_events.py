"""The prefix cache's changes as vLLM tells them, for endpoint pickers that were made for it. Pure.

A batch is `[time, events, data-parallel rank]`. An event was an array that begins with its type; since June 2026
(vllm-project/vllm#42892) it is a map with the key `type`. Fields: vllm/distributed/kv_events.py. Hashes are opaque
numbers there; ours are the last 64 bits of the block's.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import msgspec

from penstock.protocol import Events, StoredBlock

Form: TypeAlias = Literal["map", "array"]

_MEDIUM = "GPU"
"""vLLM's name for the engine's own memory, on CPUs too: other names mean slower tiers."""


def encode_batch(events: Events, form: Form, now_s: float) -> bytes | None:
    """The msgpack of one frame of `/events`; None when it tells of no block.

    A snapshot's first part clears what was known before.
    """
    found = list(_events(events))
    if not found:
        return None
    plain = [[kind, *fields.values()] if form == "array" else {"type": kind, **fields} for kind, fields in found]
    return msgspec.msgpack.encode([now_s, plain, 0])


def _events(events: Events) -> Iterator[tuple[str, dict[str, Any]]]:
    """Type and fields, in vLLM's order."""
    if events.cleared or (events.snapshot and events.part == 0):
        yield "AllBlocksCleared", {}
    if events.removed:
        yield "BlockRemoved", {"block_hashes": [_number(name) for name in events.removed], "medium": _MEDIUM}
    for run in _runs(events.stored):
        first = run[0]
        is_root = first.salt is not None
        yield (
            "BlockStored",
            {
                "block_hashes": [_number(block.hash) for block in run],
                "parent_block_hash": None if is_root else _number(first.parent),
                "token_ids": [token for block in run for token in block.tokens],
                "block_size": len(first.tokens),
                "lora_id": None,
                "medium": _MEDIUM,
                "lora_name": None,
                "extra_keys": [(first.salt,), *[None] * (len(run) - 1)] if first.salt else None,
            },
        )


def _runs(blocks: Sequence[StoredBlock]) -> Iterator[list[StoredBlock]]:
    """Blocks that follow one another, each the child of the one before."""
    starts = [
        number
        for number, block in enumerate(blocks)
        if not number or block.salt is not None or block.parent != blocks[number - 1].hash
    ]
    for start, stop in pairwise([*starts, len(blocks)]):
        yield list(blocks[start:stop])


def _number(name: bytes) -> int:
    return int.from_bytes(name[-8:], "big")
