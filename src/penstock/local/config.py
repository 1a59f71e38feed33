"""Configuration of local mode."""

import argparse
import secrets
from dataclasses import dataclass, replace
from typing import Any

from penstock.config import Parser, add_flags, from_flags, option
from penstock.engine.config import EngineConfig
from penstock.errors import ConfigError
from penstock.local.model import find_model, model_name
from penstock.machine import usable_cores
from penstock.telemetry.config import LogConfig, TraceConfig

_FIXED = ("model", "secret", "transfer_host")
"""Engine flags that local mode sets itself."""


@dataclass(frozen=True, kw_only=True)
class LocalConfig(LogConfig, TraceConfig):
    """What `penstock up` starts."""

    engine: EngineConfig
    prefill: int = option(1, "Prefill workers; 0 lets the decode workers compute the prompts.", unit="workers")
    decode: int = option(1, "Decode workers.", unit="workers")
    routers: int = option(1, "Routers, each on a port of its own.", unit="routers")
    redis: str = option(
        "", "URL of a Redis (redis://127.0.0.1:6379/0), through which several routers share quotas and work in flight."
    )
    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8000, "Port to listen on, and following ones for more routers; 0 takes free ones.")
    served_model_name: str = option(
        "", "Name of the model in the API; when empty, the folder's name or the Hugging Face id."
    )
    keys: str = option("", "File with the hashes of API keys and their tenants' quotas; without one anybody may ask.")
    policy: str = option(
        "seconds",
        "How the router chooses workers: by predicted seconds (often a decode worker alone while it is idle), or "
        "least-work, which hands over every prompt but the shortest.",
        choices=("seconds", "least-work"),
    )
    log_level: str = option(
        "warning",
        "What the parts log, and all that is worse; local mode itself says when they are ready.",
        choices=("debug", "info", "warning"),
    )
    log_dir: str = option("", "Folder for the logs of all processes, one file each; empty shows them here.")

    def __post_init__(self) -> None:
        if self.decode < 1 or self.prefill < 0:
            raise ConfigError(
                f"--decode {self.decode} --prefill {self.prefill} cannot serve: at least 1 decode and 0 prefill workers"
            )

        if self.routers < 1:
            raise ConfigError(f"--routers {self.routers} cannot serve: at least 1 router")

    @property
    def num_workers(self) -> int:
        return self.prefill + self.decode


def add_local_flags(parser: Parser, *, skip: tuple[str, ...] = ()) -> None:
    """Adds the flags of local mode, but those in `skip`, and of the workers' engines to `parser`."""
    add_flags(parser, LocalConfig, skip=("engine", *skip))
    add_flags(parser, EngineConfig, skip=_FIXED)


def local_config(args: argparse.Namespace, model: str, **fixed: Any) -> LocalConfig:
    """The configuration from parsed flags: the folder of `model`, cores shared out among the workers, a fresh secret.

    Raises ConfigError when there is no such model or the numbers of workers make no sense.
    """
    config = from_flags(LocalConfig, args, engine=from_flags(EngineConfig, args), **fixed)
    cores = usable_cores()
    engine = replace(
        config.engine,
        model=find_model(model),
        secret=secrets.token_hex(16),
        threads=config.engine.threads or max(1, cores // config.num_workers),
    )
    return replace(config, engine=engine, served_model_name=config.served_model_name or model_name(model))
