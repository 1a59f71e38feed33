"""The command line. Every command imports what it needs only when it is run, so that `--help` is instant."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import penstock
from penstock.config import Parser, add_flags, from_flags
from penstock.errors import ConfigError, PenstockError


@dataclass(frozen=True)
class Command:
    """One command: a sentence for --help, what adds its flags, what runs it and returns the exit status."""

    sentence: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit status: 0 good, 1 failed, 2 wrong flags or configuration, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words[0] not in COMMANDS:
        _overview().parse_args(words)
    command = COMMANDS[words[0]]
    parser = Parser(prog=f"penstock {words[0]}", description=command.sentence)
    try:
        command.add_flags(parser)
        return command.run(parser.parse_args(words[1:]))
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130


def _overview() -> Parser:
    """Lists the commands; it never runs one."""
    parser = Parser(prog="penstock", description="Serves large language models with prefill and decode apart.")
    parser.add_argument("--version", action="version", version=penstock.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.sentence)
    parser.epilog = "`penstock COMMAND --help` shows the flags of a command."
    return parser


def _up_flags(parser: argparse.ArgumentParser) -> None:
    from penstock.local.config import add_local_flags

    sentence = "Folder, or file://, hf:// or Hugging Face id; without one, the demonstration model."
    parser.add_argument("model", nargs="?", default="", metavar="MODEL", help=sentence)
    add_local_flags(parser)


def _up(args: argparse.Namespace) -> int:
    from penstock.local.config import local_config
    from penstock.local.up import run_up

    return run_up(local_config(args, args.model))


def _chat_flags(parser: argparse.ArgumentParser) -> None:
    from penstock.local.chat import ChatConfig

    add_flags(parser, ChatConfig)


def _chat(args: argparse.Namespace) -> int:
    from penstock.local.chat import ChatConfig, run_chat

    return run_chat(from_flags(ChatConfig, args))


def _demo_flags(parser: argparse.ArgumentParser) -> None:
    from penstock.local.config import add_local_flags

    add_local_flags(parser, skip=("host", "port"))


def _demo(args: argparse.Namespace) -> int:
    from penstock.local.config import local_config
    from penstock.local.demo import run_demo

    return run_demo(local_config(args, "", port=0))


def _worker_flags(parser: argparse.ArgumentParser) -> None:
    from penstock.worker.config import add_worker_flags

    add_worker_flags(parser)


def _prefill(args: argparse.Namespace) -> int:
    return _work(args, "prefill")


def _decode(args: argparse.Namespace) -> int:
    return _work(args, "decode")


def _work(args: argparse.Namespace, role: str) -> int:
    from penstock.local.model import find_model
    from penstock.worker.config import worker_config
    from penstock.worker.main import announce, run_worker

    args.model = find_model(args.model)
    config = worker_config("prefill" if role == "prefill" else "decode", args)
    run_worker(config, on_ready=announce(config))
    return 0


def _router_flags(parser: argparse.ArgumentParser) -> None:
    from penstock.router.config import RouterConfig

    add_flags(parser, RouterConfig)


def _router(args: argparse.Namespace) -> int:
    from penstock.local.model import find_model
    from penstock.router.config import RouterConfig
    from penstock.router.main import run_router

    args.model = find_model(args.model, text_only=True)
    run_router(from_flags(RouterConfig, args))
    return 0


def _fetch_flags(parser: argparse.ArgumentParser) -> None:
    from penstock.sources.command import FetchConfig

    parser.add_argument("uri", metavar="URI", help="The model, for example hf://Qwen/Qwen3-0.6B@main.")
    add_flags(parser, FetchConfig, skip=("uri",))


def _fetch(args: argparse.Namespace) -> int:
    from penstock.sources.command import FetchConfig, run_fetch

    return run_fetch(from_flags(FetchConfig, args))


def _operator_flags(parser: argparse.ArgumentParser) -> None:
    from penstock.operator.config import OperatorConfig

    add_flags(parser, OperatorConfig)


def _operator(args: argparse.Namespace) -> int:
    from penstock.operator.config import OperatorConfig
    from penstock.operator.main import run_operator

    return run_operator(from_flags(OperatorConfig, args))


def _render_flags(parser: argparse.ArgumentParser) -> None:
    from penstock.operator.commands.config import RenderConfig
    from penstock.operator.config import OperatorConfig

    parser.add_argument("file", metavar="FILE", help="YAML with LLMDeployments; - reads standard input.")
    add_flags(parser, RenderConfig, skip=("file",))
    images = ("worker_image_cpu", "worker_image_cuda", "router_image", "image_pull_policy", "hub_endpoint")
    others = tuple(field.name for field in dataclasses.fields(OperatorConfig) if field.name not in images)
    add_flags(parser, OperatorConfig, skip=others)


def _render(args: argparse.Namespace) -> int:
    from penstock.operator.commands.config import RenderConfig
    from penstock.operator.commands.render import run_render
    from penstock.operator.config import OperatorConfig

    return run_render(from_flags(RenderConfig, args), from_flags(OperatorConfig, args, namespace=""))


def _status_flags(parser: argparse.ArgumentParser) -> None:
    from penstock.operator.commands.config import StatusConfig

    parser.add_argument("name", metavar="NAME", help="The LLMDeployment.")
    add_flags(parser, StatusConfig, skip=("name",))


def _status(args: argparse.Namespace) -> int:
    from penstock.operator.commands.config import StatusConfig
    from penstock.operator.commands.status import run_status

    return run_status(from_flags(StatusConfig, args))


def _doctor_flags(parser: argparse.ArgumentParser) -> None:
    from penstock.operator.commands.config import DoctorConfig

    add_flags(parser, DoctorConfig)


def _doctor(args: argparse.Namespace) -> int:
    from penstock.operator.commands.config import DoctorConfig
    from penstock.operator.commands.doctor import run_doctor

    return run_doctor(from_flags(DoctorConfig, args))


def _version(_: argparse.Namespace) -> int:
    print(penstock.__version__)
    return 0


def _no_flags(_: argparse.ArgumentParser) -> None:
    pass


COMMANDS = {
    "up": Command("Start a router, prefill and decode workers on this machine, and keep them running.", _up_flags, _up),
    "chat": Command("Talk in the terminal to a model that is being served.", _chat_flags, _chat),
    "demo": Command("Start, ask the demonstration model, show which worker did what, and stop.", _demo_flags, _demo),
    "prefill": Command("Run one prefill worker: computes prompts, hands out their KV blocks.", _worker_flags, _prefill),
    "decode": Command("Run one decode worker: fetches KV blocks, streams tokens.", _worker_flags, _decode),
    "router": Command("Run the router: the OpenAI API in front of the workers.", _router_flags, _router),
    "fetch": Command("Fetch a model to where workers and router look for it.", _fetch_flags, _fetch),
    "operator": Command("Run the Kubernetes operator: LLMDeployments become pods.", _operator_flags, _operator),
    "render": Command("Print what the operator would create for a file.", _render_flags, _render),
    "status": Command("Show an LLMDeployment on one screen.", _status_flags, _status),
    "doctor": Command("Check this machine and the cluster.", _doctor_flags, _doctor),
    "version": Command("Print the version.", _no_flags, _version),
}

if __name__ == "__main__":
    sys.exit(main())
