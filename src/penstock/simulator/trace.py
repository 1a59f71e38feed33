"""Recorded requests: when they came, how long they were, and which blocks of their prompts were the same.

Two public forms: Mooncake's (Qin et al., FAST '25: one JSON object per line, one id per block of 512 tokens; equal ids
are equal prefixes) and Azure's (Patel et al., ISCA '24: CSV with lengths only, so no two prompts share anything).
"""

import csv
import datetime
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from penstock.errors import ConfigError

BLOCK_TOKENS = 512
"""Of Mooncake's ids, and so of the simulated caches: what a trace does not tell apart is not told apart here."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request; `hashes` names the full blocks of its prompt, each with all that is before it."""

    index: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    hashes: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival; the first one arrives at 0."""

    name: str
    requests: tuple[TraceRequest, ...]

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last."""
        return self.requests[-1].arrival_s

    def first(self, count: int) -> "Trace":
        """The first `count` requests; all of them when 0."""
        return replace(self, requests=self.requests[: count or None])

    def at_speed(self, speed: float) -> "Trace":
        """The same requests `speed` times as fast."""
        requests = (replace(each, arrival_s=each.arrival_s / speed) for each in self.requests)
        return replace(self, requests=tuple(requests))


_Tokens = Annotated[int, Meta(ge=0, le=10**7)]


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    input_length: _Tokens
    output_length: _Tokens
    hash_ids: list[int]


class _AzureRow(msgspec.Struct, rename="pascal"):
    timestamp: str = msgspec.field(name="TIMESTAMP")
    context_tokens: _Tokens
    generated_tokens: _Tokens


def load_trace(path: Path) -> Trace:
    """Reads a `.jsonl` file of Mooncake's form or a `.csv` file of Azure's. Raises ConfigError for anything else."""
    readers = {".jsonl": _mooncake, ".csv": _azure}
    if path.suffix not in readers:
        raise ConfigError(f"{path}: a trace is a .jsonl file of Mooncake's form or a .csv file of Azure's")
    requests: list[TraceRequest] = []
    try:
        requests.extend(readers[path.suffix](path))
    except OSError as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error
    except (msgspec.DecodeError, csv.Error, ValueError) as error:
        raise ConfigError(f"{path} is not a trace of its form: request {len(requests) + 1}: {error}") from error
    if not requests:
        raise ConfigError(f"{path} has no requests")
    requests.sort(key=lambda each: each.arrival_s)
    begin = requests[0].arrival_s
    return Trace(
        path.stem,
        tuple(replace(each, index=index, arrival_s=each.arrival_s - begin) for index, each in enumerate(requests)),
    )


def _mooncake(path: Path) -> Iterator[TraceRequest]:
    decoder = msgspec.json.Decoder(_MooncakeLine)
    for number, line in enumerate(path.read_bytes().splitlines()):
        record = decoder.decode(line)
        full = record.hash_ids[: record.input_length // BLOCK_TOKENS]  # the last id may be of a part of a block
        hashes = tuple(b"%d" % block for block in full)
        yield TraceRequest(number, record.timestamp / 1000, record.input_length, max(1, record.output_length), hashes)


def _azure(path: Path) -> Iterator[TraceRequest]:
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            record = msgspec.convert(row, _AzureRow, strict=False)
            time_s = datetime.datetime.fromisoformat(record.timestamp[:26]).timestamp()
            prompt, output = max(1, record.context_tokens), max(1, record.generated_tokens)
            hashes = tuple(b"%d.%d" % (number, block) for block in range(prompt // BLOCK_TOKENS))
            yield TraceRequest(number, time_s, prompt, output, hashes)
