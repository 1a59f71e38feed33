"""`penstock chat`: a conversation in the terminal, over the same API that every client uses."""

import contextlib
import sys
from dataclasses import dataclass

from penstock.config import check_url, option
from penstock.local.ask import AskError, Message, ask, first_model

_HELP = "Ctrl-C stops an answer, /new forgets the conversation, /quit or Ctrl-D leaves."


@dataclass(frozen=True)
class ChatConfig:
    """Whom to talk to, and how."""

    url: str = option("http://127.0.0.1:8000", "Where the router listens.")
    model: str = option("", "Name of the model; empty takes the first that the server names.")
    key: str = option("", "API key, where the server asks for one.")
    system: str = option("", "A first message that tells the model how to behave.")
    temperature: float = option(0.0, "Randomness of the answers; 0 always takes the likeliest token.")
    max_tokens: int = option(512, "Longest answer.", unit="tokens")

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        check_url("--url", self.url)


def run_chat(config: ChatConfig) -> int:
    """Talks to the end of the input: 0, or 1 when an answer failed. Raises AskError when nobody is there at first."""
    url = config.url.rstrip("/").removesuffix("/v1")
    model = config.model or first_model(url, config.key)
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() line editing and history
        print(f"{model} at {url}. {_HELP}")
    start: list[Message] = [{"role": "system", "content": config.system}] if config.system else []
    history = list(start)
    status = 0
    while (line := _read_line()) is not None:
        if not line:
            continue
        if line == "/new":
            history = list(start)
            continue
        history.append({"role": "user", "content": line})
        try:
            answer = _answer(url, model, history, config)
        except AskError as error:
            print(f"\npenstock: {error}", file=sys.stderr)
            answer, status = None, 1
        if answer is None:
            history.pop()
        else:
            history.append({"role": "assistant", "content": answer})
    return status


def _read_line() -> str | None:
    """The next thing to say, or None to leave."""
    try:
        line = input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if line == "/quit" else line


def _answer(url: str, model: str, history: list[Message], config: ChatConfig) -> str | None:
    """Shows the answer while it comes. Returns it, or what came before Ctrl-C, None if nothing. Raises AskError."""
    pieces: list[str] = []

    def show(piece: str) -> None:
        pieces.append(piece)
        print(piece, end="", flush=True)

    try:
        ask(
            url,
            model,
            history,
            show,
            key=config.key,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
        )
    except KeyboardInterrupt:
        print(" [stopped]")
        return "".join(pieces) or None
    print()
    return "".join(pieces)
