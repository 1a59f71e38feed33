"""Trains the demonstration model's tokenizer, and turns dialogues into its tokens.

A byte-level BPE of 1,024 entries: digits stay single, so that sums have columns. The chat template is plain Jinja
that any sandbox can render; it writes JSON apart from text, because what Jinja's own `tojson` is joined to gets
escaped. `render` writes the same text straight from a dialogue: training renders a million of them and must know which
tokens are answers (`tests/demo/test_text.py` holds the two together).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from penstock.demo.text import SKILLS, Dialogue, make_dialogue

VOCAB_SIZE = 1024
MAX_TOKENS = 8192
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TOOL_MARKS = ("<tool_call>", "</tool_call>")
_WORDS_AND_DIGITS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = """\
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% else %}{% set system = '' %}{% endif %}
{%- if system or tools %}
    {{- '<|im_start|>system\\n' + system }}
    {%- if tools %}
        {{- '\\n<tools>' if system else '<tools>' }}
        {%- for tool in tools %}
            {%- set function = tool.function if tool.function is defined else tool %}
            {{- '\\n{"name": ' }}{{ function.name | tojson }}
            {{- ', "description": ' }}{{ (function.description or '') | tojson }}
            {{- ', "parameters": ' }}{{ (function.parameters or {}) | tojson }}{{ '}' }}
        {%- endfor %}
        {{- '\\n</tools>' }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function if call.function is defined else call %}
            {{- '<tool_call>\\n{"name": ' }}{{ function.name | tojson }}{{ ', "arguments": ' }}
            {{- function.arguments if function.arguments is string else function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""


def render(dialogue: Dialogue, sort_keys: bool = False) -> list[tuple[str, bool]]:
    """The dialogue as pieces of text, each with whether the model is to learn to write it.

    `sort_keys` is the other way in which JSON writers order a schema: Jinja sorts where transformers does not.
    """
    heads = [dialogue.system, _tools_text(dialogue, sort_keys) if dialogue.tools else ""]
    head = "\n".join(filter(None, heads))
    pieces = [(f"{START}system\n{head}{END}\n", False)] if head else []
    for turn in dialogue.turns:
        pieces += _message("user", turn.question) + _message("assistant", turn.answer)
    if dialogue.result:
        pieces += _message("tool", dialogue.result) + _message("assistant", f"The result is: {dialogue.result}")
    return pieces


def _message(role: str, content: str) -> list[tuple[str, bool]]:
    answer = role == "assistant"
    return [(f"{START}{role}\n", False), (f"{content}{END}", answer), ("\n", False)]


def _tools_text(dialogue: Dialogue, sort_keys: bool) -> str:
    lines = ["<tools>"]
    for tool in dialogue.tools:
        function = tool.schema()["function"]
        parameters = json.dumps(function["parameters"], sort_keys=sort_keys)
        lines.append(f'{{"name": "{tool.name}", "description": "{tool.description}", "parameters": {parameters}}}')
    return "\n".join([*lines, "</tools>"])


def _sample_text(num_dialogues: int, seed: int) -> Iterator[str]:
    rng = Random(seed)
    for _ in range(num_dialogues):
        dialogue = make_dialogue(rng.choice(SKILLS), rng, held_out=False)
        yield "".join(text for text, _ in render(dialogue, sort_keys=rng.random() < 0.5))


def train_tokenizer(num_dialogues: int = 20_000, seed: int = 0) -> Tokenizer:
    """Learn the merges from training text; the result is the same for the same arguments."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS_AND_DIGITS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    marks = [AddedToken(mark, special=True) for mark in (PAD, START, END)]
    marks += [AddedToken(mark, special=False) for mark in TOOL_MARKS]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample_text(num_dialogues, seed), trainer)
    tokenizer.add_special_tokens([mark for mark in marks if mark.special])
    tokenizer.add_tokens([mark for mark in marks if not mark.special])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` that transformers and the router read."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_TOKENS,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
