"""Log lines carry the request they are about, as text or as one JSON object each."""

import json
import logging
import re
import sys

import pytest

from penstock.telemetry.config import LogConfig
from penstock.telemetry.logs import JsonLines, TextLines, requests_log, set_up_logs
from penstock.telemetry.trace import Tracer


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("penstock.test").makeRecord(
        "penstock.test", logging.WARNING, __file__, 1, message, args, None, extra=extra
    )


@pytest.fixture
def request_id() -> str:
    Tracer().begin("chat", "r-1", {})
    return "r-1"


def test_a_json_line_has_time_level_logger_message_request_and_fields(request_id: str) -> None:
    line = JsonLines().format(record("%s is lost\nor not", "d-0", seconds=0.5, status="200"))
    assert "\n" not in line
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "warning",
        "logger": "penstock.test",
        "message": "d-0 is lost\nor not",
        "request_id": request_id,
        "seconds": 0.5,
        "status": "200",
    }


def test_outside_of_requests_no_request_is_named() -> None:
    assert "request_id" not in json.loads(JsonLines().format(record("ready")))
    assert TextLines().format(record("ready")).endswith("WARNING penstock.test: ready")


def test_a_json_line_carries_the_exception() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        found = record("it fails")
        found.exc_info = sys.exc_info()
    assert "ValueError: broken" in json.loads(JsonLines().format(found))["exception"]


def test_a_text_line_ends_with_the_request_and_the_fields(request_id: str) -> None:
    line = TextLines().format(record("the request has ended", seconds=0.5))
    assert line.endswith(f"WARNING penstock.test: the request has ended request_id={request_id} seconds=0.5")


def test_lines_about_requests_come_whatever_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    before, level = list(logging.root.handlers), logging.root.level
    try:
        set_up_logs(LogConfig(log_level="warning"))
        logging.getLogger("penstock.test").info("not this")
        requests_log.info("but this")
    finally:
        logging.captureWarnings(False)
        logging.root.handlers[:] = before
        logging.root.setLevel(level)
    said = capsys.readouterr().err
    assert "but this" in said
    assert "not this" not in said
