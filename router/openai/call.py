"""One API request on its way: its prompts being generated and its answers' texts. What both endpoints share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penstock.router.answer_text import AnswerText, Delta, LoggedToken
from penstock.router.generation import Generation
from penstock.router.openai.responses import PromptTokensDetails, Usage


@dataclass(slots=True)
class Choice:
    """One answer of the request."""

    index: int
    generation: Generation
    text: AnswerText
    parts: list[str] = field(default_factory=list)
    logged: list[LoggedToken] = field(default_factory=list)
    finish_reason: str = ""

    def keep(self, delta: Delta) -> None:
        """Collects a delta for an answer that is sent in one piece."""
        self.parts.append(delta.text)
        self.logged.extend(delta.logged)


class Form(Protocol):
    """How an endpoint writes its answers."""

    def opening(self, choice: Choice) -> bytes | None:
        """The first chunk of an answer, before any text."""
        ...

    def chunk(self, choice: Choice, delta: Delta) -> bytes:
        """One event of a stream."""
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        """The stream's last event when usage was asked for."""
        ...

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The body when not streaming."""
        ...


@dataclass(slots=True)
class Call:
    """A checked request, ready to run."""

    generations: list[Generation]
    choices: list[Choice]
    form: Form
    stream: bool
    include_usage: bool
    prompt_field: str
    """What the endpoint calls its prompt."""
    max_tokens_field: str
    """What the client called the answer's limit."""
    expected_tokens: int
    """Of all prompts, and of answers as long as they usually are."""

    def usage(self) -> Usage:
        prompt = sum(len(generation.prompt) for generation in self.generations)
        cached = sum(generation.cached_tokens or 0 for generation in self.generations)
        output = sum(choice.text.num_tokens for choice in self.choices)
        return Usage(prompt, output, prompt + output, PromptTokensDetails(cached))
