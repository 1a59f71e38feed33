"""A figure in a table means the same everywhere: ratios, targets, and the form of the file."""

import json
from pathlib import Path

import pytest

from bench import report
from bench.report import Report, compare, percentile, table


def test_a_ratio_is_better_when_larger_whatever_the_unit() -> None:
    assert compare("speed", "tokens/s", 300, 200, "peer").ratio == 1.5
    assert compare("time", "s", 2, 6, "peer", less_is_better=True).ratio == 3


def test_a_target_is_met_or_missed_by_the_ratio_or_by_our_figure() -> None:
    assert compare("speed", "tokens/s", 300, 200, "peer", target_ratio=1.5).met is True
    assert compare("speed", "tokens/s", 299, 200, "peer", target_ratio=1.5).met is False
    assert compare("time", "ms", 9.9, limit=10).met is True
    assert compare("time", "ms", 10, limit=10).met is False


def test_without_a_peer_or_with_a_figure_that_is_not_positive_there_is_no_ratio() -> None:
    assert compare("speed", "tokens/s", 300, target_ratio=1.5).met is None
    assert compare("gap", "ms", -3, 50, "peer", less_is_better=True).ratio is None


def test_percentiles_interpolate() -> None:
    assert percentile([3.0], 95) == 3
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == pytest.approx(2.5)
    assert percentile(list(map(float, range(101))), 95) == pytest.approx(95)


def test_a_missed_target_stands_out_in_the_table() -> None:
    assert table([compare("time", "ms", 12, limit=10)]).splitlines()[1].split()[-1] == "NO"


def test_the_file_has_the_form_that_other_tools_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "bench" / "results")
    (tmp_path / "bench").mkdir()
    Report("demo", [compare("time", "ms", 1.23456789, 2, "peer", less_is_better=True, target_ratio=1)]).finish()
    content = json.loads((tmp_path / "bench" / "results" / "demo.json").read_text())
    assert {"name", "date", "commit", "machine", "command", "rows"} <= set(content)
    assert content["rows"] == [
        {
            "what": "time",
            "unit": "ms",
            "ours": 1.2346,
            "peer": 2,
            "peer_name": "peer",
            "ratio": 1.62,
            "target": "ratio >= 1",
            "met": True,
        }
    ]
