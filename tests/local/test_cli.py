"""The command line: complete help, quickly, without what only some commands need."""

import resource
import signal
import subprocess
import sys
import tomllib
from argparse import SUPPRESS
from pathlib import Path

import pytest

from penstock.cli import COMMANDS, EXTRAS, main
from penstock.config import Parser
from tests.local.tiny_model import write_tiny_model

HEAVY = ("torch", "transformers", "fastapi", "uvicorn", "aiohttp", "numpy", "tokenizers", "kopf", "kubernetes")


def without(*packages: str) -> tuple[str, ...]:
    """The command line on a machine where `packages` are not installed."""
    block = f"sys.modules.update(dict.fromkeys({packages!r}))"
    return "-c", f"import sys; {block}; from penstock.cli import main; sys.exit(main())"


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
    result = run(command, "--help", program=without(*HEAVY))
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


@pytest.mark.parametrize(
    ("words", "text_only"),
    [
        (["URI"], False),
        (["URI", "--text-only"], True),
        (["--text-only", "URI"], True),
        (["--text-only", "--termination-log=log", "URI"], True),
        (["--text-only", "True", "URI"], True),
        (["--text-only", "no", "URI"], False),
        (["--text-only=false", "URI"], False),
    ],
)
def test_a_flag_that_is_true_or_false_needs_no_value_and_takes_one(words: list[str], text_only: bool) -> None:
    parser = Parser(environment={"PENSTOCK_FLAG_TEXT_ONLY": "true"} if "--text-only=false" in words else {})
    COMMANDS["fetch"].add_flags(parser)
    args = parser.parse_args(words)
    assert (args.uri, args.text_only) == ("URI", text_only)


def test_a_flag_that_is_true_or_false_takes_nothing_else() -> None:
    assert run("fetch", "--text-only=perhaps", "URI").stderr.endswith("'perhaps' is not true or false\n")


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("PENSTOCK_FLAG_KV_BYTE", "did you mean PENSTOCK_FLAG_KV_BYTES?"),
        ("PENSTOCK_FLAG_kv_bytes", "did you mean PENSTOCK_FLAG_KV_BYTES?"),
        ("PENSTOCK_FLAG_QQQQQQ", "`penstock COMMAND --help` shows what there is"),
    ],
)
def test_a_variable_that_sets_no_flag_exits_with_2_and_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, variable: str, hint: str
) -> None:
    monkeypatch.setenv(variable, "1")
    for command in ("version", "explain"):
        result = run(command, *(["r"] if command == "explain" else []))
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
        assert result.stderr == f"penstock: {variable} in the environment sets no flag of any command; {hint}\n"


def test_a_variable_of_another_command_is_none_of_this_one_s_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_FLAG_KV_BYTES", "no size")
    assert run("version").returncode == 0
    result = run("decode")
    assert (result.returncode, "PENSTOCK_FLAG_KV_BYTES=no size" in result.stderr) == (2, True)


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


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        *((words, "kubernetes", "operator") for words in (("render", "x"), ("status", "x"), ("operator",))),
        (("render", "x"), "yaml", "operator"),
        *(((command,), "torch", "worker") for command in ("prefill", "decode")),
        *(((command,), "torch", "router,worker") for command in ("up", "demo")),
        (("decode",), "uvicorn", "worker"),
        (("router",), "tokenizers", "router"),
        (("fetch", "hf://org/model"), "huggingface_hub", "router"),
    ],
)
def test_a_missing_package_is_a_sentence_that_says_what_to_install(
    words: tuple[str, ...], package: str, extra: str
) -> None:
    result = run(*words, program=without(package))
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert f"penstock {words[0]}` needs the Python package {package} of the extra {extra}," in result.stderr
    assert result.stderr.endswith(f"pip install --constraint constraints.txt --editable '.[{extra}]'\n")
    assert ("python install_torch.py && " in result.stderr) == ("worker" in extra)


@pytest.mark.parametrize("package", ["kubernetes", "yaml"])
def test_doctor_looks_at_the_machine_also_without_what_the_cluster_takes(package: str) -> None:
    result = run("doctor", program=without(package))
    assert result.returncode == 0, result.stderr
    *machine, cluster = result.stdout.splitlines()
    assert {line.split()[1] for line in machine} == {"version", "torch", "nixl", "triton", "GPU", "RDMA"}
    assert cluster.startswith("warn  cluster      not looked at: ")
    assert f"needs the Python package {package} of the extra operator" in cluster


def test_the_extras_of_all_commands_exist() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) <= set(COMMANDS)
    assert {extra for extras in EXTRAS.values() for extra in extras.split(",")} <= set(project["optional-dependencies"])


def test_a_missing_module_of_penstock_is_no_matter_of_extras() -> None:
    result = run("render", "x", program=without("penstock.operator.commands.render"))
    assert "Traceback" in result.stderr


INTERRUPTED = """
import os, signal, sys
from penstock import cli

class Interrupt:
    def find_spec(name, *_):
        if name == "penstock.local.chat":
            os.kill(os.getpid(), signal.SIGINT)

def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    return 0

if "import" in sys.argv:
    sys.meta_path.insert(0, Interrupt)
else:
    cli.COMMANDS["chat"] = cli.Command("", lambda _: None, lambda _: interrupted)
# Said in any case: what `make test &` starts ignores it.
signal.signal(signal.SIGINT, signal.SIG_IGN if "ignored" in sys.argv else signal.default_int_handler)
sys.exit(cli.main(["chat", "--url=http://127.0.0.1:9"][: 2 if "import" in sys.argv else 1]))
"""
"""`penstock chat` that gets SIGINT while it imports its modules, or when it runs."""


@pytest.mark.parametrize(("when", "status"), [("import", -signal.SIGINT), ("run", 130)])
def test_ctrl_c_ends_a_command_silently_whether_it_imports_or_runs(when: str, status: int) -> None:
    result = run(when, program=("-c", INTERRUPTED))
    assert (result.returncode, result.stdout, result.stderr) == (status, "", "")


def test_a_command_that_was_started_with_ctrl_c_ignored_goes_on() -> None:
    assert run("run", "ignored", program=("-c", INTERRUPTED)).returncode == 0
    assert "does not answer" in run("import", "ignored", program=("-c", INTERRUPTED)).stderr


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "penstock-demo"),
        (["--model", "file://{folder}"], "tiny"),
        (["--model", "{folder}", "--served-model-name", "other"], "other"),
    ],
)
def test_parts_that_are_started_by_hand_call_the_model_as_penstock_up_does(
    flags: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    flags = [flag.format(folder=folder) for flag in flags]
    names = []
    monkeypatch.setattr("penstock.router.main.run_router", lambda config: names.append(config.served_model_name))
    monkeypatch.setattr("penstock.worker.main.run_worker", lambda config, **_: names.append(config.model_name))
    assert [main([command, *flags]) for command in ("router", "prefill", "decode")] == [0, 0, 0]
    monkeypatch.setattr("penstock.local.up.run_up", lambda config: names.append(config.served_model_name))
    assert main(["up", *(flag for flag in flags if flag != "--model")]) is None
    assert names == [name] * 4
