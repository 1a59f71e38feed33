"""The command line: complete help, quickly, without what only some commands need."""

import resource
import subprocess
import sys
from argparse import SUPPRESS

import pytest

from penstock.cli import COMMANDS
from penstock.config import Parser

HEAVY = ("torch", "transformers", "fastapi", "uvicorn", "aiohttp", "numpy", "tokenizers")
BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); from penstock.cli import main; sys.exit(main())"


def run(*words: str, program: tuple[str, ...] = ("-m", "penstock.cli")) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *program, *words], capture_output=True, text=True, timeout=30)


def test_help_lists_every_command_with_its_sentence() -> None:
    words = " ".join(run("--help").stdout.split())
    for name, command in COMMANDS.items():
        assert f"{name} {command.sentence}" in words


def test_help_takes_less_than_0_3_seconds_of_cpu() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_a_command_needs_no_heavy_package(command: str) -> None:
    result = run(command, "--help", program=("-c", BLOCKED))
    assert result.returncode == 0, result.stderr
    assert f"usage: penstock {command}" in result.stdout


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_flag_has_a_default_and_a_sentence(command: str) -> None:
    parser = Parser(prog=command)
    COMMANDS[command].add_flags(parser)
    flags = [action for action in parser._actions if action.option_strings and action.default is not SUPPRESS]
    for flag in flags:
        assert flag.help
        assert "(default: " in flag.help, flag.option_strings
        assert flag.help.split("(default: ")[0].strip().endswith((".", ")")), flag.help
    assert bool(flags) == (command != "version")


def test_an_unknown_command_exits_with_2_and_names_what_exists() -> None:
    unknown = run("upp")
    assert unknown.returncode == 2
    assert "'up'" in unknown.stderr


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (("up", "--prefil", "2"), "--prefill"),
        (("up", "--prefil=2"), "--prefill"),
        (("up", "model", "more", "--prefil", "2"), "--prefill"),
        (("decode", "--kv-byte", "1"), "--kv-bytes"),
    ],
)
def test_an_unknown_or_shortened_flag_exits_with_2_and_names_the_nearest(words: tuple[str, ...], nearest: str) -> None:
    flag = run(*words)
    assert flag.returncode == 2
    assert flag.stderr.endswith(f"did you mean '{nearest}'?\n")


def test_version_is_printed() -> None:
    from penstock import __version__

    assert run("version").stdout == run("--version").stdout == f"{__version__}\n"


def test_impossible_number_of_workers_is_a_sentence() -> None:
    result = run("up", "--decode", "0")
    assert result.returncode == 2
    assert "at least 1 decode" in result.stderr


def test_an_impossible_port_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("up", "--port", "99999")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "port 99999" in result.stderr
    monkeypatch.setenv("PENSTOCK_FLAG_PORT", "abc")
    result = run("up")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "PENSTOCK_FLAG_PORT=abc" in result.stderr
