"""The command line. Every command imports what it needs only when it is run, so that `--help` is instant."""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import penstock
from penstock.config import Parser, add_flags, from_flags, misspelt_variable
from penstock.errors import ConfigError, PenstockError
from penstock.extras import describe_missing, require

Run = Callable[[], int]
"""Does what a command is for; returns the exit status."""


@dataclass(frozen=True)
class Command:
    """One command: a sentence for --help, what adds its flags, what imports its modules and returns what runs."""

    sentence: str
    add_flags: Callable[[Parser], None]
    load: Callable[[argparse.Namespace], Run]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit status: 0 good, 1 failed, 2 wrong flags or configuration, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words[0] not in COMMANDS:
        _overview().parse_args(words)
    command = COMMANDS[words[0]]
    parser = Parser(prog=f"penstock {words[0]}", description=command.sentence)
    try:
        with _ctrl_c_ends_at_once():
            command.add_flags(parser)
            args = parser.parse_args(words[1:])
            _refuse_misspelt_variables(parser)
            run = command.load(args)
        return run()
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except ModuleNotFoundError as error:
        print(f"penstock: {describe_missing(error, parser.prog, EXTRAS.get(words[0], ''))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


@contextmanager
def _ctrl_c_ends_at_once() -> Iterator[None]:
    """Around imports: a KeyboardInterrupt there is a traceback, or SIGSEGV where msgspec builds its decoders in C."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler:  # ignored, as behind `nohup ... &`, or the caller's own
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _refuse_misspelt_variables(parser: Parser) -> None:
    """What is set in the environment may be another command's, but no command's is a mistake. Raises ConfigError."""
    unknown = parser.unknown_variables()
    if unknown:
        known: set[str] = set()
        for command in COMMANDS.values():
            other = Parser(environment={})
            command.add_flags(other)
            known |= other.variables()
        for name in sorted(unknown - known):
            raise misspelt_variable(name, known)


def _overview() -> Parser:
    """Lists the commands; it never runs one."""
    parser = Parser(prog="penstock", description="Serves large language models with prefill and decode apart.")
    parser.add_argument("--version", action="version", version=penstock.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.sentence)
    parser.epilog = "`penstock COMMAND --help` shows the flags of a command."
    return parser


def _up_flags(parser: Parser) -> None:
    from penstock.local.config import add_local_flags

    sentence = "Folder, or file://, hf:// or Hugging Face id; without one, the demonstration model."
    parser.add_argument("model", nargs="?", default="", metavar="MODEL", help=sentence)
    add_local_flags(parser)


def _up(args: argparse.Namespace) -> Run:
    from penstock.local.config import local_config
    from penstock.local.up import run_up

    require("torch")
    return lambda: run_up(local_config(args, args.model))


def _chat_flags(parser: Parser) -> None:
    from penstock.local.chat import ChatConfig

    add_flags(parser, ChatConfig)


def _chat(args: argparse.Namespace) -> Run:
    from penstock.local.chat import ChatConfig, run_chat

    return lambda: run_chat(from_flags(ChatConfig, args))


def _demo_flags(parser: Parser) -> None:
    from penstock.local.config import add_local_flags

    add_local_flags(parser, skip=("host", "port", "keys", "policy", "routers", "redis"))


def _demo(args: argparse.Namespace) -> Run:
    from penstock.local.config import local_config
    from penstock.local.demo import run_demo

    require("torch")
    return lambda: run_demo(local_config(args, "", port=0, policy="least-work"))


def _worker_flags(parser: Parser) -> None:
    from penstock.worker.config import add_worker_flags

    add_worker_flags(parser)


def _prefill(args: argparse.Namespace) -> Run:
    return _work(args, "prefill")


def _decode(args: argparse.Namespace) -> Run:
    return _work(args, "decode")


def _work(args: argparse.Namespace, role: str) -> Run:
    from penstock.worker.config import worker_config
    from penstock.worker.main import announce, run_worker

    require("torch")

    def run() -> int:
        _find_model(args)
        config = worker_config("prefill" if role == "prefill" else "decode", args)
        run_worker(config, on_ready=announce(config))
        return 0

    return run


def _find_model(args: argparse.Namespace, *, text_only: bool = False) -> None:
    """Puts the model's folder where the user's word for it was; by default it is named as by `penstock up`."""
    from penstock.local.model import find_model, model_name

    folder = find_model(args.model, text_only=text_only)
    args.served_model_name = args.served_model_name or model_name(args.model)
    args.model = folder


def _router_flags(parser: Parser) -> None:
    from penstock.router.config import RouterConfig

    add_flags(parser, RouterConfig)


def _router(args: argparse.Namespace) -> Run:
    from penstock.router.config import RouterConfig
    from penstock.router.main import run_router

    def run() -> int:
        _find_model(args, text_only=True)
        run_router(from_flags(RouterConfig, args))
        return 0

    return run


def _key_flags(parser: Parser) -> None:
    from penstock.router.flow.command import KeyConfig

    parser.add_argument("tenant", metavar="TENANT", help="Whose key it is.")
    add_flags(parser, KeyConfig, skip=("tenant",))


def _key(args: argparse.Namespace) -> Run:
    from penstock.router.flow.command import KeyConfig, run_key

    return lambda: run_key(from_flags(KeyConfig, args))


def _explain_flags(parser: Parser) -> None:
    from penstock.router.explain_command import ExplainConfig

    parser.add_argument("request_id", metavar="REQUEST_ID", help="Its x-request-id, as in the answer's headers.")
    add_flags(parser, ExplainConfig)


def _explain(args: argparse.Namespace) -> Run:
    from penstock.router.explain_command import ExplainConfig, run_explain

    return lambda: run_explain(from_flags(ExplainConfig, args), args.request_id)


def _fetch_flags(parser: Parser) -> None:
    from penstock.sources.command import FetchConfig

    parser.add_argument("uri", metavar="URI", help="The model, for example hf://Qwen/Qwen3-0.6B@main.")
    add_flags(parser, FetchConfig, skip=("uri",))


def _fetch(args: argparse.Namespace) -> Run:
    from penstock.sources.command import FetchConfig, run_fetch

    return lambda: run_fetch(from_flags(FetchConfig, args))


def _operator_flags(parser: Parser) -> None:
    from penstock.operator.config import OperatorConfig

    add_flags(parser, OperatorConfig)


def _operator(args: argparse.Namespace) -> Run:
    from penstock.operator.config import OperatorConfig
    from penstock.operator.main import run_operator

    return lambda: run_operator(from_flags(OperatorConfig, args))


def _render_flags(parser: Parser) -> None:
    from penstock.operator.commands.config import RenderConfig
    from penstock.operator.config import OperatorConfig

    parser.add_argument("file", metavar="FILE", help="YAML with LLMDeployments; - reads standard input.")
    add_flags(parser, RenderConfig, skip=("file",))
    images = ("worker_image_cpu", "worker_image_cuda", "router_image", "image_pull_policy", "hub_endpoint")
    others = tuple(field.name for field in dataclasses.fields(OperatorConfig) if field.name not in images)
    add_flags(parser, OperatorConfig, skip=others)


def _render(args: argparse.Namespace) -> Run:
    from penstock.operator.commands.config import RenderConfig
    from penstock.operator.commands.render import run_render
    from penstock.operator.config import OperatorConfig

    return lambda: run_render(from_flags(RenderConfig, args), from_flags(OperatorConfig, args, namespace=""))


def _status_flags(parser: Parser) -> None:
    from penstock.operator.commands.config import StatusConfig

    parser.add_argument("name", metavar="NAME", help="The LLMDeployment.")
    add_flags(parser, StatusConfig, skip=("name",))


def _status(args: argparse.Namespace) -> Run:
    from penstock.operator.commands.config import StatusConfig
    from penstock.operator.commands.status import run_status

    return lambda: run_status(from_flags(StatusConfig, args))


def _doctor_flags(parser: Parser) -> None:
    from penstock.operator.commands.config import DoctorConfig

    add_flags(parser, DoctorConfig)


def _doctor(args: argparse.Namespace) -> Run:
    from penstock.operator.commands.config import DoctorConfig
    from penstock.operator.commands.doctor import run_doctor

    return lambda: run_doctor(from_flags(DoctorConfig, args))


def _plan_flags(parser: Parser) -> None:
    from penstock.simulator.config import PlanConfig

    sentence = "Recorded requests: a .jsonl file of Mooncake's form or a .csv file of Azure's."
    parser.add_argument("trace", metavar="TRACE", help=sentence)
    add_flags(parser, PlanConfig, skip=("trace",))


def _plan(args: argparse.Namespace) -> Run:
    from penstock.simulator.config import PlanConfig
    from penstock.simulator.plan import run_plan

    return lambda: run_plan(from_flags(PlanConfig, args))


def _version(_: argparse.Namespace) -> Run:
    def run() -> int:
        print(penstock.__version__)
        return 0

    return run


def _no_flags(_: Parser) -> None:
    pass


COMMANDS = {
    "up": Command("Start routers, prefill and decode workers on this machine, and keep them running.", _up_flags, _up),
    "chat": Command("Talk in the terminal to a model that is being served.", _chat_flags, _chat),
    "demo": Command("Start, ask the demonstration model, show which worker did what, and stop.", _demo_flags, _demo),
    "prefill": Command("Run one prefill worker: computes prompts, hands out their KV blocks.", _worker_flags, _prefill),
    "decode": Command("Run one decode worker: fetches KV blocks, streams tokens.", _worker_flags, _decode),
    "router": Command("Run the router: the OpenAI API in front of the workers.", _router_flags, _router),
    "key": Command("Make an API key: the key for its owner, and its hash for the router's key file.", _key_flags, _key),
    "explain": Command("Show why the router placed a request where it did.", _explain_flags, _explain),
    "fetch": Command("Fetch a model to where workers and router look for it.", _fetch_flags, _fetch),
    "operator": Command("Run the Kubernetes operator: LLMDeployments become pods.", _operator_flags, _operator),
    "render": Command("Print what the operator would create for a file.", _render_flags, _render),
    "status": Command("Show an LLMDeployment on one screen.", _status_flags, _status),
    "doctor": Command(
        "Check this machine and, where the extra operator is installed, the cluster.", _doctor_flags, _doctor
    ),
    "plan": Command(
        "Say how many workers of which kind serve a recorded trace, and what they cost.", _plan_flags, _plan
    ),
    "version": Command("Print the version.", _no_flags, _version),
}

EXTRAS = {
    **dict.fromkeys(("up", "demo"), "router,worker"),
    **dict.fromkeys(("prefill", "decode"), "worker"),
    **dict.fromkeys(("operator", "render", "status"), "operator"),
    **dict.fromkeys(("router", "key", "explain", "fetch"), "router"),
    "plan": "plan",
}
"""The extras of pyproject.toml that a command needs; the others need none."""

if __name__ == "__main__":
    sys.exit(main())
