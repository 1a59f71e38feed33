"""Settings of logs and traces, which components have in common: each default written once."""

from dataclasses import dataclass, fields
from typing import Any

from penstock.config import option


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How a process writes its log."""

    log_format: str = option("text", "How log lines are written.", choices=("text", "json"))
    log_level: str = option("info", "What is logged, and all that is worse.", choices=("debug", "info", "warning"))


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """What is told of single requests, and to whom."""

    log_requests: bool = option(False, "Log one line per request when it has ended, whatever the log level.")
    otlp_endpoint: str = option(
        "",
        "Base URL of an OpenTelemetry collector (OTLP over HTTP), as http://collector:4318; no traces without one.",
    )
    trace_ratio: float = option(
        1.0, "Share of the requests that are traced, 0 to 1; a caller that sends a traceparent decides for its own."
    )


def telemetry_of(config: Any) -> dict[str, Any]:
    """The settings of `config`, a LogConfig and TraceConfig, that are not the default, for others to do the same."""
    ours = [field for kind in (LogConfig, TraceConfig) for field in fields(kind)]
    return {field.name: getattr(config, field.name) for field in ours if getattr(config, field.name) != field.default}
