"""Renders a conversation as the model's own chat template says, byte for byte as transformers does.

Templates come with model folders and are not trusted: they run in Jinja2's immutable sandbox.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.errors import ModelError, RequestError, reason_of

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt")


class ChatTemplate:
    """The compiled templates of one model: `default` and, in some families, `tool_use`."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are the variables `bos_token`, `eos_token`, ... that templates may use."""
        environment = _environment()
        self._sources = dict(sources)
        self._words = frozenset(word for source in sources.values() for word in re.findall(r"\w+", source))
        self._special_tokens = dict(special_tokens)
        self._templates = {}
        for name, source in sources.items():
            try:
                self._templates[name] = environment.from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise ModelError(f"chat template {name!r} is not valid Jinja, line {error.lineno}: {error}") from error

    def mentions(self, name: str) -> bool:
        """Whether a template names `name` anywhere: it may read a message's field of that name."""
        return name in self._words

    def writes(self, token: str) -> bool:
        """Whether a template may write this token on its own account: it is in its text, or one of its variables."""
        return token in self._special_tokens.values() or any(token in source for source in self._sources.values())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text. `variables` are the template's own switches (`enable_thinking`, `documents`, ...).

        Raises RequestError when the template refuses the conversation.
        """
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise RequestError("this model has no default chat template; use /v1/completions", field="messages")
        values: dict[str, Any] = {**self._special_tokens, "documents": None, **(variables or {})}
        for own in _OWN_VARIABLES:
            if own in (variables or {}) and own != "documents":
                raise RequestError(f"chat_template_kwargs may not set {own!r}", field="chat_template_kwargs")
        values |= {"messages": [_prepared(message) for message in messages], "tools": tools}
        try:
            return self._templates[name].render(add_generation_prompt=add_generation_prompt, **values)
        except RecursionError as error:
            raise RequestError("the messages or tools are nested too deeply", field="messages") from error
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = reason_of(error)
            raise RequestError(f"the model's chat template refused the messages: {reason}", field="messages") from error


def load_chat_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The model's templates from where model folders keep them, or None when it has none.

    `chat_template.jinja` and `additional_chat_templates/*.jinja` win over `chat_template` in tokenizer_config.json,
    which is one template or a list of named ones.
    """
    sources = {path.stem: path.read_text("utf-8") for path in folder.glob("additional_chat_templates/*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        sources["default"] = (folder / "chat_template.jinja").read_text("utf-8")
    config = folder / "tokenizer_config.json"
    if not sources and config.is_file():
        found = json.loads(config.read_text("utf-8")).get("chat_template")
        if isinstance(found, str):
            sources = {"default": found}
        elif found:
            sources = {entry["name"]: entry["template"] for entry in found}
    return ChatTemplate(sources, special_tokens) if sources else None


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's part for training; here it only scopes names."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own `tojson` escapes HTML, which models have not seen in training."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _prepared(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without null fields (templates would print "None"), and with reasoning under each name templates read."""
    present = {key: value for key, value in message.items() if value is not None}
    reasoning = next((present[name] for name in _REASONING_FIELDS if name in present), None)
    if reasoning is None:
        return present
    return {"thinking": reasoning, **present, "reasoning_content": reasoning}
