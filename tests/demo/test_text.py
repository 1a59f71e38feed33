"""The training text and the held-out prompts: apart from each other, and rendered as the chat template renders them."""

import json
from itertools import pairwise, product
from random import Random

import jinja2.sandbox
import pytest

from penstock.demo import tables
from penstock.demo.evaluate import PROBES, held_out_prompts, messages_of
from penstock.demo.rows import SHARES
from penstock.demo.text import SKILLS, Dialogue, add_in_steps, is_held_out, make_dialogue, subtract_in_steps
from penstock.demo.tokenizer import CHAT_TEMPLATE, render
from penstock.demo.tools import TOOLS
from penstock.demo.words import ADJECTIVES, NOUNS


def training_dialogues(skill: str, count: int = 1500) -> list[Dialogue]:
    rng = Random(7)
    return [make_dialogue(skill, rng, held_out=False, num_lines=20) for _ in range(count)]


@pytest.mark.parametrize("skill", ["sums", "spelling", "copying", "retrieval"])
def test_no_key_of_training_is_held_out(skill: str) -> None:
    keys = [turn.key for dialogue in training_dialogues(skill) for turn in dialogue.turns]
    taught = {*ADJECTIVES, *NOUNS} if skill == "spelling" else set()
    assert not any(is_held_out(key) for key in keys if key not in taught)


@pytest.mark.parametrize("probe", PROBES)
def test_held_out_prompts_share_no_key_with_the_training_text(probe: str) -> None:
    trained = {turn.key for dialogue in training_dialogues(PROBES[probe][0]) for turn in dialogue.turns}
    held_out = {dialogue.turns[0].key for dialogue in held_out_prompts(probe, 200)}
    assert not trained & held_out


@pytest.mark.parametrize("probe", ["sums", "spelling", "copying", "retrieval, 200 tokens", "tools"])
def test_every_held_out_key_is_one_that_training_leaves_out(probe: str) -> None:
    assert all(is_held_out(dialogue.turns[0].key) for dialogue in held_out_prompts(probe, 200))


def steps_and_result(answer: str) -> tuple[list[tuple[str, int]], int]:
    """The equations that an answer writes down, and the number that it ends with."""
    steps, result = answer.rstrip(".").split(", so ")
    equations = [equation.split(" = ") for equation in steps.split(", ")]
    return [(terms, int(value)) for terms, value in equations], int(result)


def value_of(terms: str) -> int:
    return sum(int(term) for term in terms.replace("- ", "-").replace("+ ", "").split())


def test_every_step_of_every_sum_is_true() -> None:
    for a, b in product(range(10, 100), repeat=2):
        small, large = sorted((a, b))
        for answer, expected in ((add_in_steps(a, b), a + b), (subtract_in_steps(large, small), large - small)):
            equations, result = steps_and_result(answer)
            assert result == expected
            assert all(value_of(terms) == value for terms, value in equations)


def test_every_code_in_a_held_out_context_has_a_name_kept_from_training() -> None:
    for dialogue in held_out_prompts("retrieval, 1,000 tokens", 20):
        lines = [line for line in dialogue.turns[0].question.splitlines() if line.startswith("The code of ")]
        assert len(lines) == 16
        assert all(is_held_out(line.removeprefix("The code of ").split(" is ")[0]) for line in lines)


def test_held_out_spelling_uses_no_word_of_the_dictionary() -> None:
    assert not {dialogue.turns[0].key for dialogue in held_out_prompts("spelling", 200)} & {*ADJECTIVES, *NOUNS}


def test_phrasings_for_evaluation_are_new() -> None:
    for entry in (*tables.TOPICS.values(), *tables.RELATIONS.values()):
        assert not set(entry.train) & set(entry.held_out)


def test_no_phrasing_of_one_fact_serves_as_the_held_out_phrasing_of_another() -> None:
    trained = {phrasing for relation in tables.RELATIONS.values() for phrasing in relation.train}
    held_out = {phrasing for relation in tables.RELATIONS.values() for phrasing in relation.held_out}
    assert not trained & held_out


def test_held_out_prompts_are_distinct_and_repeatable() -> None:
    first, second = held_out_prompts("sums", 200), held_out_prompts("sums", 200)
    assert first == second
    assert len({dialogue.turns[0].question for dialogue in first}) == 200


def test_every_skill_has_a_share_of_the_rows() -> None:
    assert set(SHARES) == set(SKILLS)
    assert sum(SHARES.values()) == 100


@pytest.mark.parametrize("skill", SKILLS)
def test_training_reads_what_the_chat_template_writes(skill: str) -> None:
    for dialogue in training_dialogues(skill, 30):
        assert "".join(text for text, _ in render(dialogue)) == rendered_by_template(dialogue)


def rendered_by_template(dialogue: Dialogue) -> str:
    """By a plain sandbox, as the router does it, with the whole conversation as OpenAI messages."""
    messages: list[dict[str, object]] = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    for turn in dialogue.turns:
        messages += [{"role": "user", "content": turn.question}, assistant_message(turn.answer)]
    if dialogue.result:
        messages.append({"role": "tool", "content": dialogue.result})
        messages.append({"role": "assistant", "content": f"The result is: {dialogue.result}"})
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    tools = [tool.schema() for tool in dialogue.tools]
    return environment.from_string(CHAT_TEMPLATE).render(messages=messages, tools=tools)


def assistant_message(answer: str) -> dict[str, object]:
    if not answer.startswith("<tool_call>"):
        return {"role": "assistant", "content": answer}
    call = json.loads(answer.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]}


def test_the_template_opens_the_answer_only_when_asked() -> None:
    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(CHAT_TEMPLATE)
    messages = messages_of(held_out_prompts("sums", 1)[0])
    assert template.render(messages=messages, add_generation_prompt=True).endswith("<|im_start|>assistant\n")
    assert template.render(messages=messages).endswith("<|im_end|>\n")


def test_only_answers_are_learned_in_full() -> None:
    for dialogue in training_dialogues("facts", 20):
        learned = [text for text, learn in render(dialogue) if learn]
        assert learned == [f"{turn.answer}<|im_end|>" for turn in dialogue.turns]


def test_tools_have_distinct_names() -> None:
    assert all(a < b for a, b in pairwise(sorted(tool.name for tool in TOOLS)))
