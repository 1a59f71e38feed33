"""What is read from files: traces and kinds of workers."""

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.errors import ConfigError
from penstock.router.placement.costs import StepCost
from penstock.simulator.kinds import H100, PRIORS, find_kind, write_kind
from penstock.simulator.trace import load_trace
from tests.simulator.small import KIND

MOONCAKE = """\
{"timestamp": 4000, "input_length": 1100, "output_length": 7, "hash_ids": [0, 1, 2]}
{"timestamp": 1000, "input_length": 1024, "output_length": 0, "hash_ids": [0, 5]}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,1024,44
2023-11-16 18:15:50.9951690,396,109
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_mooncake_trace(tmp_path: Path) -> None:
    early, late = load_trace(write(tmp_path / "t.jsonl", MOONCAKE)).requests
    assert (early.index, early.arrival_s, early.prompt_tokens, early.output_tokens) == (0, 0.0, 1024, 1)
    assert (late.index, late.arrival_s, late.prompt_tokens, late.output_tokens) == (1, 3.0, 1100, 7)
    assert len(late.hashes) == 2, "a part of a block cannot be shared"
    assert (early.hashes[0] == late.hashes[0], early.hashes[1] == late.hashes[1]) == (True, False)


def test_an_azure_trace_shares_nothing(tmp_path: Path) -> None:
    trace = load_trace(write(tmp_path / "t.csv", AZURE))
    first, second = trace.requests
    assert second.arrival_s == pytest.approx(4.314579, abs=1e-6)
    assert (first.prompt_tokens, first.output_tokens, len(first.hashes), second.hashes) == (1024, 44, 2, ())


def test_parts_and_speeds(tmp_path: Path) -> None:
    trace = load_trace(write(tmp_path / "t.jsonl", MOONCAKE))
    assert trace.at_speed(2).duration_s == 1.5
    assert trace.first(1).duration_s == 0.0
    assert trace.first(0) == trace


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("t.txt", "", "Mooncake's form"),
        ("t.jsonl", "{", "not a trace"),
        ("t.jsonl", "", "no requests"),
        ("t.csv", "a,b\n1,2\n", "not a trace"),
        ("t.jsonl", MOONCAKE.replace("1024", "-1"), "request 2: .* >= 0 - at `\\$.input_length`"),
        ("t.csv", AZURE.replace(",109", ""), "request 2: .* - at `\\$.GeneratedTokens`"),
        ("t.csv", AZURE.replace("396", "-396"), "request 2: .* >= 0 - at `\\$.ContextTokens`"),
        ("t.csv", AZURE.replace("2023-11-16 18:15:50.9951690", "yesterday"), "request 2: .*'yesterday'"),
        ("t.csv", AZURE + "x" * 200_000, "request 3: .* larger than field limit"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, name: str, text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_trace(write(tmp_path / name, text))
    with pytest.raises(ConfigError, match="cannot read"):
        load_trace(tmp_path / "none.jsonl")


def test_a_measured_kind_is_written_and_read(tmp_path: Path) -> None:
    write_kind(KIND, tmp_path / "kind.json")
    assert find_kind(str(tmp_path / "kind.json")) == KIND


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": 1}'])
def test_a_file_that_is_no_kind_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="no kind of worker"):
        find_kind(str(write(tmp_path / "kind.json", text)))


@pytest.mark.parametrize(
    ("field", "value"), [("kv_tokens", 0), ("link_bytes_s", 0), ("max_sequences", 0), ("price_per_hour", -1)]
)
def test_a_kind_that_could_serve_nothing_is_refused(tmp_path: Path, field: str, value: float) -> None:
    write_kind(replace(KIND, **{field: value}), tmp_path / "kind.json")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=field):
        find_kind(str(tmp_path / "kind.json"))


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="h100-8b, h100x8-70b"):
        find_kind("h200")


def test_the_prior_of_an_h100_is_arithmetic() -> None:
    # 8,192 tokens: 2 x 8.03e9 x 8,192 FLOPs at 55 % of 989 TFLOP/s, or 16.06 GB at 80 % of 3.35 TB/s.
    prefill = 2 * 8.03e9 * 8192 / (0.55 * 989e12)
    assert H100.step.seconds(prefill_tokens=8192) == pytest.approx(2e-3 + prefill)
    assert H100.step.seconds(decode_tokens=1) == pytest.approx(2e-3 + 16.06e9 / (0.8 * 3.35e12))


@pytest.mark.parametrize("kind", PRIORS.values(), ids=PRIORS)
def test_priors_say_that_nobody_measured_them(kind: object) -> None:
    assert "not measured" in kind.source  # type: ignore[attr-defined]


def test_the_router_s_linear_costs_are_a_step_time_too() -> None:
    assert StepCost(step_s=1.0).seconds(0, 0, 0, 0) == 1.0
