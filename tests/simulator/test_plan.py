"""`penstock plan`."""

from pathlib import Path

import pytest

from penstock.cli import main
from penstock.simulator.outcome import Summary
from penstock.simulator.plan import Plan, staircase
from tests.simulator.small import spec

NOTHING = Summary(1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)


class Demand:
    """Two units per decode worker, three per prefill worker, and at least one decode worker."""

    def __init__(self, needed: int) -> None:
        self.needed = needed
        self.tried: list[tuple[int, int]] = []

    def __call__(self, num_prefill: int, num_decode: int) -> Plan:
        self.tried.append((num_prefill, num_decode))
        is_good = 3 * num_prefill + 2 * num_decode >= self.needed
        return Plan(num_prefill, num_decode, spec(num_prefill, num_decode), NOTHING, is_good)


def test_the_staircase_is_made_of_the_fewest_decode_workers_for_each_number_of_prefill_workers() -> None:
    plans = [(plan.num_prefill, plan.num_decode) for plan in staircase(Demand(13), 1.0, 1.0, most=20)]
    assert plans == [(0, 7), (1, 5), (2, 4), (3, 2), (4, 1)]


def test_it_stops_where_prefill_workers_alone_cost_more_than_the_cheapest_plan() -> None:
    demand = Demand(13)
    plans = [(plan.num_prefill, plan.num_decode) for plan in staircase(demand, 4.0, 1.0, most=20)]
    assert plans == [(0, 7), (1, 5)]
    assert max(num_prefill for num_prefill, _ in demand.tried) == 1


def test_it_does_not_try_every_number() -> None:
    demand = Demand(200)
    assert next(staircase(demand, 1.0, 1.0, most=128)).num_decode == 100
    assert len(demand.tried) < 16


def test_nothing_is_good_enough() -> None:
    assert list(staircase(Demand(1000), 1.0, 1.0, most=4)) == []


TRACE = "".join(
    f'{{"timestamp": {1000 * number}, "input_length": 4000, "output_length": 20, "hash_ids": []}}\n'
    for number in range(30)
)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    (tmp_path / "trace.jsonl").write_text(TRACE)
    return str(tmp_path / "trace.jsonl")


def test_the_command_prints_the_plans_and_the_cheapest(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    # One H100 with 8 B parameters computes 4,000 tokens in 0.13 s and is idle for most of each second.
    assert main(["plan", trace, "--decode", "h100-8b", "--prefill", "h100-8b"]) == 0
    printed = capsys.readouterr().out
    assert "30 requests, 1.03 per second, on average 4,000 tokens in and 20 out" in printed
    assert "not measured" in printed
    lines = printed.splitlines()
    assert lines[-1] == "cheapest: none for prefill, 1 x h100-8b for decode, 3.00 per hour"
    assert [line.rstrip() for line in lines] == lines


def test_a_faster_trace_needs_more(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", trace, "--decode", "h100-8b", "--prefill", "h100-8b", "--speed", "20", "--ttft", "1"]) == 0
    cost = float(capsys.readouterr().out.split()[-3])
    assert cost > 6


def test_when_nothing_is_good_enough_it_says_how_close_the_most_came(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", trace, "--ttft", "0.01", "--max-workers", "2"]) == 1
    assert "not even 2 + 2 workers are good enough" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--decode", "h900"], "neither a file nor one of the kinds"),
        *((["--speed", value], "must be from 1e-6 to 1e6") for value in ("0", "nan", "inf", "1e-308")),
        *((["--ttft", value], "must be more than 0") for value in ("-1", "nan", "inf")),
        (["--tpot", "0"], "must be more than 0"),
        *((["--good", value], "must be more than 0, and at most 100") for value in ("0", "200", "nan")),
        (["--requests", "-5"], "--requests -5 must be 0 or more"),
        (["--max-workers", "0"], "--max-workers 0 must be 1 or more"),
    ],
)
def test_wrong_flags_are_refused(trace: str, flags: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", trace, *flags]) == 2
    said = capsys.readouterr().err
    assert part in said
    assert len(said.splitlines()) == 1
