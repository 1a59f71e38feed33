"""The log of a process: lines of text, or of JSON for those who collect them, each with the request it is about.

A line is written in the task that works for a request, so its id comes along by itself. `extra={...}` of a logging call
adds fields.
"""

import logging
import time
from typing import Any

import msgspec

from penstock.telemetry.config import LogConfig
from penstock.telemetry.trace import current

requests_log = logging.getLogger("penstock.requests")
"""For one line per request, which whoever asks for them gets whatever the level of the others."""
requests_log.setLevel(logging.INFO)

_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the others are its fields."""


def set_up_logs(config: LogConfig) -> None:
    """From now on this process logs to stderr as `config` says."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if config.log_format == "json" else TextLines())
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


class TextLines(logging.Formatter):
    """`2026-11-21 09:30:00,123 INFO penstock.router.main: listening at http://... request=abc key=value`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        return " ".join((super().formatMessage(record), *(f"{name}={value}" for name, value in fields.items())))


class JsonLines(logging.Formatter):
    """One object per line: time (UTC), level, logger, message, the request, and the fields of the call."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The request's id and its trace's, where there are any, and what the logging call added."""
    trace = current()
    about = {"request_id": trace.request_id, "trace_id": trace.trace_id}
    added = {name: value for name, value in vars(record).items() if name not in _KNOWN}
    return {name: value for name, value in about.items() if value} | added
