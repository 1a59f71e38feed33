"""Thirty templates render exactly as transformers renders them."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from penstock.errors import ModelError, RequestError
from penstock.router.chat_template import ChatTemplate, load_chat_template
from penstock.router.tokenizer import Tokenizer
from tests.router.chat_templates import TEMPLATES
from tests.router.model_folders import byte_fallback_bpe, write_folder

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather <b>now</b> & "soon" in Köln',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "where"},
                "days": {"type": "integer"},
                "units": {"type": "array", "items": {"type": "string"}},
                "kind": {"type": "string", "enum": ["short", "long"]},
            },
            "required": ["city"],
        },
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "  What is a penstock?\n"}],
    "system first": [
        {"role": "system", "content": "Be brief.\n\nAnd\tkind."},
        {"role": "user", "content": "Hi <b>you</b> & 'me' {{ not_a_variable }} {% raw %}"},
        {"role": "assistant", "content": "Hello 👩‍🚀! <|im_end|>"},
        {"role": "user", "content": "你好,世界"},
    ],
    "reasoning": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4"},
        {"role": "user", "content": "3+3?"},
        {"role": "assistant", "content": "6", "reasoning_content": "three and three\n"},
    ],
    "reasoning by another name": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4", "reasoning": "add"},
    ],
    "tool call": [
        {"role": "user", "content": "Weather in Zürich?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call00001", "content": '{"sun": true}'},
        {"role": "assistant", "content": "Sunny.", "tool_calls": None},
        {"role": "user", "content": "Thanks"},
    ],
    "ends with the assistant": [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": "So then "}],
    "unknown role": [{"role": "user", "content": "a"}, {"role": "stop", "content": "b", "name": "c"}],
}
VARIABLES: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False, "reasoning_effort": "high", "date_string": "1 Jan 2026"},
    {"documents": [{"title": "t", "text": "d1"}, {"title": "u", "text": "d2"}]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("templates"),
        byte_fallback_bpe(),
        eos="</s>",
        bos_token="<s>",
        image_token="<image>",
        pad_token={"__type": "AddedToken", "content": "</s>", "special": True},
    )


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def special_tokens(folder: Path) -> dict[str, str]:
    return Tokenizer(folder).special_tokens


def cases() -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]] | None, bool, dict[str, Any]]]:
    for messages in CONVERSATIONS.values():
        for tools in (None, [WEATHER], [WEATHER, WEATHER]):
            for add_generation_prompt in (True, False):
                for variables in VARIABLES:
                    yield messages, tools, add_generation_prompt, variables


def test_there_are_thirty_different_templates() -> None:
    assert len(TEMPLATES) == len(set(TEMPLATES.values())) == 30


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(
    name: str, reference: PreTrainedTokenizerBase, special_tokens: dict[str, str]
) -> None:
    template = ChatTemplate({"default": TEMPLATES[name]}, special_tokens)
    rendered = set()
    refused = 0
    for messages, tools, add_generation_prompt, variables in cases():
        try:
            expected = reference.apply_chat_template(
                messages,
                tools=tools,
                chat_template=TEMPLATES[name],
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **variables,
            )
        except Exception:  # the template refuses this conversation: so must ours
            refused += 1
            with pytest.raises(RequestError):
                template.render(messages, tools, add_generation_prompt=add_generation_prompt, variables=variables)
            continue
        ours = template.render(messages, tools, add_generation_prompt=add_generation_prompt, variables=variables)
        assert ours == expected
        rendered.add(ours)
    assert len(rendered) >= 5, "the template tells conversations apart"
    assert refused < len(list(cases())) / 2


def test_special_tokens_are_those_of_transformers(
    reference: PreTrainedTokenizerBase, special_tokens: dict[str, str]
) -> None:
    assert special_tokens == {name: str(token) for name, token in reference.special_tokens_map.items()}
    assert special_tokens["image_token"] == "<image>"


NAMED = [
    {"name": "default", "template": "D{{ messages[0].content }}"},
    {"name": "tool_use", "template": "T{{ messages[0].content }}{{ tools | length }}"},
]


@pytest.mark.parametrize("form", ["list in the config", "files", "one string", "one file", "file beside config"])
def test_templates_are_found_where_transformers_finds_them(tmp_path: Path, form: str) -> None:
    in_config: Any = {"list in the config": NAMED, "one string": "S{{ bos_token }}", "file beside config": "S"}
    write_folder(tmp_path, byte_fallback_bpe(), eos="</s>", bos_token="<s>", chat_template=in_config.get(form))
    if form in ("files", "one file", "file beside config"):
        (tmp_path / "chat_template.jinja").write_text("F{{ messages[0].content }}\n", "utf-8")
    if form == "files":
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("U{{ tools }}", "utf-8")
    reference = AutoTokenizer.from_pretrained(tmp_path)
    template = load_chat_template(tmp_path, Tokenizer(tmp_path).special_tokens)
    assert template is not None
    messages = [{"role": "user", "content": "x"}]
    for tools in (None, [WEATHER]):
        expected = reference.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        assert template.render(messages, tools) == expected


def test_a_model_without_a_template_has_none(tmp_path: Path) -> None:
    write_folder(tmp_path, byte_fallback_bpe(), eos="</s>", chat_template=None)
    assert load_chat_template(tmp_path, {}) is None


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    for attack in (
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception.__globals__ }}",
    ):
        rendered = ""
        with suppress(RequestError):
            rendered = ChatTemplate({"default": attack}, {}).render([{"role": "user", "content": "x"}])
        assert not rendered, attack


def test_a_template_that_is_not_jinja_is_refused_at_start(tmp_path: Path) -> None:
    write_folder(tmp_path, byte_fallback_bpe(), eos="</s>", chat_template="{% for %}")
    with pytest.raises(ModelError, match="line 1"):
        load_chat_template(tmp_path, {})


def test_the_templates_own_refusal_reaches_the_client() -> None:
    template = ChatTemplate({"default": "{{ raise_exception('no system prompts') }}"}, {})
    with pytest.raises(RequestError, match="no system prompts") as caught:
        template.render([{"role": "system", "content": "x"}])
    assert caught.value.field == "messages"


def test_content_is_never_run_as_a_template() -> None:
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, {})
    text = json.dumps("{{ 7 * 7 }}{% raw %}")
    assert template.render([{"role": "user", "content": text}]) == text


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    template = ChatTemplate({"default": "{{ tools | tojson }}"}, {})
    with pytest.raises(RequestError, match="nested too deeply"):
        template.render([], [deep])


def test_a_template_mentions_the_fields_that_it_may_read() -> None:
    template = ChatTemplate({"default": "{{ messages[0].tool_plan }}", "tool_use": "{{ messages[0]['prefix'] }}"}, {})
    assert template.mentions("tool_plan")
    assert template.mentions("prefix")
    assert not template.mentions("plan")
    assert not template.mentions("")
