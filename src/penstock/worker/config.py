"""A worker's configuration: what its HTTP front needs, beside the engine's own configuration."""

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.config import Parser, add_flags, from_flags, option
from penstock.engine.config import EngineConfig
from penstock.errors import ConfigError
from penstock.telemetry.config import LogConfig, TraceConfig

Role = Literal["prefill", "decode"]


@dataclass(frozen=True)
class WorkerConfig(LogConfig, TraceConfig):
    """How one worker is reached and when it gives up. Flags of `engine` stand beside these (`add_worker_flags`)."""

    role: Role
    engine: EngineConfig
    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8100, "Port to listen on; 0 takes a free one.")
    drain_grace_s: float = option(30.0, "Seconds that open streams get to finish after SIGTERM.", unit="s")
    source_wait_s: float = option(
        1.0,
        "How long a request waits for another worker to say what it has cached; then the prompt is computed here.",
        unit="s",
    )
    served_model_name: str = option(
        "", "Name of the model in metrics; when empty, the folder's name or the Hugging Face id."
    )
    max_body_bytes: int = option(16 * 2**20, "Longest request body.", unit="bytes")
    max_frames_behind: int = option(
        1024,
        "A request whose caller reads so slowly that more frames of each sample wait for it is cancelled.",
        unit="frames",
    )

    kv_events: str = option(
        "",
        "Where to publish changes of the prefix cache over ZMQ as vLLM does: tcp://*:5557 listens there, "
        "tcp://HOST:5557 connects to a subscriber.",
    )
    kv_events_topic: str = option("", "Topic of these events; llm-d wants kv@ADDRESS:PORT@MODEL.")
    kv_events_form: str = option(
        "map",
        "How each event is written: as vLLM does since June 2026, or as an array, as before.",
        choices=("map", "array"),
    )

    def __post_init__(self) -> None:
        if not self.kv_events:
            return
        if not self.kv_events.startswith(("tcp://", "ipc://")):
            raise ConfigError(f"--kv-events {self.kv_events!r} must start with tcp:// or ipc://")
        if importlib.util.find_spec("zmq") is None:
            raise ConfigError(
                "--kv-events needs the extra zmq, which is not installed; in a clone of Penstock run: "
                "pip install --constraint constraints.txt --editable '.[zmq]'"
            )

    @property
    def model_name(self) -> str:
        return self.served_model_name or Path(self.engine.model).name


def add_worker_flags(parser: Parser) -> None:
    """Adds the flags of a worker and of its engine to `parser`."""
    add_flags(parser, WorkerConfig, skip=("role", "engine"))
    add_flags(parser, EngineConfig)


def worker_config(role: Role, args: argparse.Namespace) -> WorkerConfig:
    """The configuration of a worker of this role from parsed flags."""
    return from_flags(WorkerConfig, args, role=role, engine=from_flags(EngineConfig, args))
