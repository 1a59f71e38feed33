"""Kinds of workers: how long a step takes, what fits, how fast KV moves, what an hour costs.

A kind comes from a file that `python -m bench.step_times` writes after measuring a worker, or from PRIORS: arithmetic
on data sheets (`Roofline`), for devices that nobody here has measured. Every report says which.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from penstock.errors import ConfigError
from penstock.router.placement.costs import StepCost
from penstock.simulator.trace import BLOCK_TOKENS


class StepTime(Protocol):
    """How long one step of a worker takes."""

    def seconds(
        self, prefill_tokens: float = 0, prefill_pairs: float = 0, decode_tokens: float = 0, context_tokens: float = 0
    ) -> float:
        """Rows of prompts, their query-key pairs, rows of sequences that decode, tokens of KV that these read."""
        ...


@dataclass(frozen=True, slots=True)
class Roofline:
    """A step takes as long as its arithmetic or its memory traffic, whichever is longer (Williams et al. 2009).

    `compute_share` and `memory_share` are what kernels reach of the data sheet's peak.
    """

    parameters: float
    layers: int
    hidden: int
    """Query heads x head dimension."""
    kv_token_bytes: int
    flops: float
    memory_bytes_s: float
    compute_share: float
    memory_share: float
    overhead_s: float
    """Of a step, beside the device: scheduling, sampling, launches."""

    def seconds(
        self, prefill_tokens: float = 0, prefill_pairs: float = 0, decode_tokens: float = 0, context_tokens: float = 0
    ) -> float:
        pairs = prefill_pairs + context_tokens
        flops = 2 * self.parameters * (prefill_tokens + decode_tokens) + 4 * self.layers * self.hidden * pairs
        read = 2 * self.parameters + self.kv_token_bytes * context_tokens
        return self.overhead_s + max(
            flops / (self.flops * self.compute_share), read / (self.memory_bytes_s * self.memory_share)
        )


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """What one worker of this kind can do."""

    name: str
    step: StepTime
    kv_tokens: int
    """Tokens of KV that fit."""
    kv_token_bytes: int
    link_bytes_s: float
    """Of KV, in each direction, to and from all other workers together."""
    link_latency_s: float = 1e-3
    """Of one read, however small."""
    step_tokens: int = 8192
    """Most tokens of one step: longer prompts are computed in chunks."""
    max_sequences: int = 256
    price_per_hour: float = 0.0
    source: str = ""
    """Where the figures come from."""

    @property
    def num_blocks(self) -> int:
        return self.kv_tokens // BLOCK_TOKENS


_NOT_MEASURED = "data sheet and stated efficiencies, not measured"

H100 = WorkerKind(
    name="h100-8b",
    # Llama 3.1 8B in bf16 on one H100 SXM. Data sheet: 989 TFLOP/s, 3.35 TB/s. Kernels reach about 55 % of the one in
    # prefill and 80 % of the other in decode. 80 GB less weights and activations leave 52 GB for KV of 128 KiB a token.
    step=Roofline(
        parameters=8.03e9,
        layers=32,
        hidden=4096,
        kv_token_bytes=131_072,
        flops=989e12,
        memory_bytes_s=3.35e12,
        compute_share=0.55,
        memory_share=0.8,
        overhead_s=2e-3,
    ),
    kv_tokens=400_000,
    kv_token_bytes=131_072,
    link_bytes_s=40e9,  # one 400 Gbit/s adapter, 80 % of it
    price_per_hour=3.0,
    source=_NOT_MEASURED,
)

H100_NODE = WorkerKind(
    name="h100x8-70b",
    # Llama 3.3 70B in bf16 on a node of eight, as Mooncake's trace was served on A800. Tensor parallelism leaves 45 %
    # of the arithmetic and 65 % of the bandwidth. 640 GB less weights and activations leave 430 GB for KV.
    step=Roofline(
        parameters=70.6e9,
        layers=80,
        hidden=8192,
        kv_token_bytes=327_680,
        flops=8 * 989e12,
        memory_bytes_s=8 * 3.35e12,
        compute_share=0.45,
        memory_share=0.65,
        overhead_s=3e-3,
    ),
    kv_tokens=1_300_000,
    kv_token_bytes=327_680,
    link_bytes_s=8 * 40e9,
    price_per_hour=24.0,
    source=_NOT_MEASURED,
)

PRIORS = {kind.name: kind for kind in (H100, H100_NODE)}


_AtLeastOne = Annotated[int, Meta(ge=1)]
_NotNegative = Annotated[float, Meta(ge=0)]


class _KindFile(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON that bench.step_times writes."""

    name: str
    source: str
    step: dict[str, _NotNegative]
    """Fields of StepCost."""
    kv_tokens: Annotated[int, Meta(ge=BLOCK_TOKENS)]
    kv_token_bytes: _AtLeastOne
    link_bytes_s: Annotated[float, Meta(gt=0)]
    link_latency_s: _NotNegative
    step_tokens: _AtLeastOne
    max_sequences: _AtLeastOne
    price_per_hour: _NotNegative = 0.0


def find_kind(word: str) -> WorkerKind:
    """The kind that `word` names: one of PRIORS, or a file. Raises ConfigError."""
    if word in PRIORS:
        return PRIORS[word]
    path = Path(word)
    if not path.is_file():
        raise ConfigError(f"{word} is neither a file nor one of the kinds {', '.join(PRIORS)}")
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_KindFile)
        fields = {name: getattr(content, name) for name in content.__struct_fields__}
        return WorkerKind(**fields | {"step": StepCost(**content.step)})
    except (msgspec.DecodeError, TypeError) as error:
        raise ConfigError(f"{path} describes no kind of worker: {error}") from error


def write_kind(kind: WorkerKind, path: Path) -> None:
    """Writes a measured kind, whose steps are linear, as find_kind reads it."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(kind), indent=2) + b"\n")
