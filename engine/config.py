"""The engine's configuration: one frozen object, from which flags, environment and chart values derive."""

import math
from dataclasses import dataclass

from penstock.config import option
from penstock.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """How a worker's engine runs a model."""

    model: str = option("", "Model folder; empty serves the demonstration model.")
    dtype: str = option(
        "auto", "Number format of weights and KV cache.", choices=("auto", "float32", "bfloat16", "float16")
    )
    device: str = option("auto", "Where the model runs.", choices=("auto", "cpu", "cuda"))
    block_size: int = option(16, "Tokens per KV block.", unit="tokens")
    kv_bytes: int = option(
        256 * 2**20,
        "Memory for the KV cache; on CPU a third of it holds contiguous copies of running sequences.",
        unit="bytes",
    )
    num_blocks: int = option(0, "Blocks in the KV cache; 0 derives it from --kv-bytes.", unit="blocks")
    max_step_tokens: int = option(512, "Token budget of one engine step, shared by prefill and decode.", unit="tokens")
    max_sequences: int = option(64, "Sequences in one batch.", unit="sequences")
    max_context_tokens: int = option(0, "Longest sequence; 0 takes the model's own limit.", unit="tokens")
    prefix_cache: bool = option(True, "Reuse the KV blocks of earlier prompts with the same beginning.")
    transport: str = option("auto", "How KV blocks move between workers.", choices=("auto", "nixl", "tcp"))
    transfer_host: str = option("127.0.0.1", "Address at which other workers reach this worker's KV blocks.")
    transfer_timeout_s: float = option(3.0, "A pull of KV blocks without progress for longer fails.", unit="s")
    lease_s: float = option(
        60.0, "Longest time a prefill worker holds blocks for a caller that says nothing.", unit="s"
    )
    threads: int = option(0, "Threads of matrix products on CPU; 0 takes all cores.", unit="threads")
    secret: str = option("", "Key of the block hashes, equal on all workers of a deployment.")
    trace: str = option("", "File that gains a line per prefill, pull and first decode step (benchmarks).")
    poison: bool = option(False, "Fill freed blocks with NaN, so that a read of stale KV cannot go unnoticed (tests).")

    def __post_init__(self) -> None:
        for name in ("block_size", "max_step_tokens", "max_sequences"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_context_tokens == 1:
            raise ConfigError("max_context_tokens must be at least 2: a prompt of one token and its answer")
        for name in ("kv_bytes", "num_blocks", "max_context_tokens", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("transfer_timeout_s", "lease_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be more than 0 seconds, not {getattr(self, name)}")
