"""Makes the text that the demonstration model learns from, and the prompts it is judged by, out of nothing but tables.

Every question carries a key: its operands, its word, its phrasing, the name it asks for. `is_held_out(key)` alone
decides on which side a question falls, so the training text and the held-out prompts cannot share one. This module
knows no tokens; `tokenizer.render` turns its dialogues into them.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from penstock.demo import tables, words
from penstock.demo.tools import Tool, draw_call, draw_tools

SKILLS = ("self", "facts", "sums", "spelling", "copying", "retrieval", "tools")
_HELD_OUT_SHARE = 8  # one key in eight
_PREFIXES = ("", "", "", "", "Please: ", "Quick question: ", "One more: ", "Now this: ", "Tell me: ")
_PLUS = ("What is {} + {}?", "{} + {}", "{} + {} = ?", "Add {} and {}.", "How much is {} plus {}?")
_MINUS = ("What is {} - {}?", "{} - {}", "{} - {} = ?", "How much is {} minus {}?", "Compute {} - {}.")
_SYSTEMS = ("You are a helpful assistant.", "Answer briefly.", "You are Penstock demo.", "Be precise.")


@dataclass(frozen=True)
class Turn:
    """A question and its one right answer. `key` decides whether it is held out."""

    question: str
    answer: str
    key: str


@dataclass(frozen=True)
class Dialogue:
    """Turns about one skill, one after the other. `result` is what the called tool said, where one was called."""

    skill: str
    turns: tuple[Turn, ...]
    system: str = ""
    tools: tuple[Tool, ...] = ()
    result: str = ""


def is_held_out(key: str) -> bool:
    return zlib.crc32(key.encode()) % _HELD_OUT_SHARE == 0


def make_dialogue(skill: str, rng: Random, held_out: bool, num_lines: int = 12) -> Dialogue:
    """A dialogue of `skill`: one turn if held out, several for training. `num_lines` bounds what to look up in."""
    system = rng.choice(_SYSTEMS) if rng.random() < 0.1 else ""
    if skill == "tools":
        return _tool_dialogue(rng, held_out, system)
    if skill == "retrieval":
        return Dialogue(skill, _retrieval(rng, held_out, num_lines), system)
    num_turns = 1 if held_out else rng.choice((1, 1, 2, 4, 6))
    turns = [_TURNS[skill](rng, held_out) for _ in range(num_turns)]
    return Dialogue(skill, tuple(turns), system)


def _draw(rng: Random, held_out: bool, make: Callable[[Random], Turn]) -> Turn:
    """Draw until the key falls on the wanted side."""
    while is_held_out((turn := make(rng)).key) != held_out:
        pass
    return turn


def _self(rng: Random, held_out: bool) -> Turn:
    topic = rng.choice(list(tables.TOPICS.values()))
    question = rng.choice(topic.held_out if held_out else topic.train)
    return Turn(rng.choice(_PREFIXES) + question, topic.answer, question)


def _facts(rng: Random, held_out: bool) -> Turn:
    relation, key, value = rng.choice(_FACTS)
    phrasing = rng.choice(relation.held_out if held_out else relation.train)
    answer = relation.answer.format(key=key, value=value)
    return Turn(rng.choice(_PREFIXES) + phrasing.format(key=key), answer, phrasing)


def _sums(rng: Random, held_out: bool) -> Turn:
    """A sum or a difference of two numbers of two digits; the key forgets their order, as 3 + 4 gives away 4 + 3."""

    def make(rng: Random) -> Turn:
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        small, large = sorted((a, b))
        if rng.random() < 0.5:
            phrasing, answer = rng.choice(_PLUS).format(a, b), add_in_steps(a, b)
        else:
            phrasing, answer = rng.choice(_MINUS).format(large, small), subtract_in_steps(large, small)
        return Turn(rng.choice(_PREFIXES) + phrasing, answer, f"{small} {large}")

    return _draw(rng, held_out, make)


def add_in_steps(a: int, b: int) -> str:
    """Column by column, as in school: a small model looks up one digit at a time far sooner than whole sums."""
    ones = a % 10 + b % 10
    carry = " + 1" if ones > 9 else ""
    return f"{a % 10} + {b % 10} = {ones}, {a // 10} + {b // 10}{carry} = {(a + b) // 10}, so {a + b}."


def subtract_in_steps(a: int, b: int) -> str:
    """Column by column; a column that is too small borrows ten from the next."""
    borrow = a % 10 < b % 10
    top = a % 10 + 10 * borrow
    tens = f"{a // 10} - {b // 10}{' - 1' if borrow else ''}"
    return f"{top} - {b % 10} = {top - b % 10}, {tens} = {(a - b) // 10}, so {a - b}."


def invent_word(rng: Random) -> str:
    """A word that nobody has seen but anyone can spell: one to three syllables."""
    syllables = (rng.choice(words.ONSETS) + rng.choice(words.VOWELS) for _ in range(rng.choice((1, 2, 2, 3))))
    return "".join(syllables) + rng.choice(words.CODAS)


def _word(rng: Random) -> str:
    return rng.choice(WORDS) if rng.random() < 0.5 else invent_word(rng)


def _spelling(rng: Random, held_out: bool) -> Turn:
    """Dictionary words are for training only: a word that is one token cannot be spelled unless it was seen spelled."""

    def make(rng: Random, word: str = "") -> Turn:
        word = word or invent_word(rng)
        phrasing = rng.choice(("Spell {}.", "How do you spell {}?", "Spell the word {}.", "Write {} letter by letter."))
        return Turn(rng.choice(_PREFIXES) + phrasing.format(word), "-".join(word), word)

    if not held_out and rng.random() < 0.4:
        return make(rng, rng.choice(WORDS))
    return _draw(rng, held_out, make)


def _copying(rng: Random, held_out: bool) -> Turn:
    def make(rng: Random) -> Turn:
        pieces = [_word(rng) if rng.random() < 0.7 else str(rng.randrange(1000)) for _ in range(rng.randrange(2, 8))]
        text = " ".join(pieces)
        phrasing = rng.choice(("Repeat:", "Copy:", "Say this again:", "Repeat after me:", "Echo:", "Copy this line:"))
        return Turn(f"{phrasing}\n{text}", text, text)

    return _draw(rng, held_out, make)


def _code_names(rng: Random, held_out: bool, count: int) -> list[str]:
    """Names of two words, no word in two names, all held out or none."""
    nouns = rng.sample(words.NOUNS, len(words.NOUNS))
    names: list[str] = []
    for adjective in rng.sample(words.ADJECTIVES, len(words.ADJECTIVES)):
        for noun in nouns:
            if len(names) < count and is_held_out(f"{adjective} {noun}") == held_out:
                nouns.remove(noun)
                names.append(f"{adjective} {noun}")
                break
    return names


def _filler(rng: Random) -> str:
    noun, action = rng.choice(words.NOUNS), rng.choice(words.ACTIONS)
    return f"The {noun} {action} near {rng.choice(words.PLACES)} {rng.choice(words.TIMES)}."


def _retrieval(rng: Random, held_out: bool, num_lines: int) -> tuple[Turn, ...]:
    """Codes strewn among `num_lines` lines (up to that many in training), then questions for some of them."""
    if not held_out:
        num_lines = rng.randint(2, num_lines)
    num_codes = min(16, num_lines) if held_out else rng.randint(1, min(24, num_lines))
    codes = {name: f"{rng.randrange(10_000):04}" for name in _code_names(rng, held_out, num_codes)}
    lines = [f"The code of {name} is {code}." for name, code in codes.items()]
    lines += [_filler(rng) for _ in range(num_lines - len(lines))]
    rng.shuffle(lines)
    asked = rng.sample(list(codes), 1 if held_out else rng.randint(1, min(6, len(codes))))
    phrasings = ("What is the code of {}?", "Tell me the code of {}.", "Which code belongs to {}?")
    turns = [Turn(rng.choice(phrasings).format(name), f"The code of {name} is {codes[name]}.", name) for name in asked]
    first = Turn("\n".join(lines) + "\n" + turns[0].question, turns[0].answer, turns[0].key)
    return (first, *turns[1:])


def _tool_dialogue(rng: Random, held_out: bool, system: str) -> Dialogue:
    """A question that one of the offered tools answers; in training sometimes a question that none does."""
    if not held_out and rng.random() < 0.15:
        turn = rng.choice((_self, _facts, _sums))(rng, held_out)
        return Dialogue("tools", (turn,), system, draw_tools(rng))

    def make(rng: Random) -> Turn:
        call = draw_call(rng)
        tool_of[call.arguments] = call.tool
        return Turn(call.question, call.arguments, call.key)

    tool_of: dict[str, Tool] = {}
    turn = _draw(rng, held_out, make)
    tool = tool_of[turn.answer]
    text = f'<tool_call>\n{{"name": "{tool.name}", "arguments": {turn.answer}}}\n</tool_call>'
    result = "" if held_out or rng.random() < 0.6 else f"{_word(rng)} {rng.randrange(1000)}"
    return Dialogue("tools", (Turn(turn.question, text, turn.key),), system, draw_tools(rng, tool), result)


_FACTS = [(relation, *fact) for relation in tables.RELATIONS.values() for fact in relation.facts.items()]
WORDS = (*words.ADJECTIVES, *words.NOUNS)
_TURNS: dict[str, Callable[[Random, bool], Turn]] = {
    "self": _self,
    "facts": _facts,
    "sums": _sums,
    "spelling": _spelling,
    "copying": _copying,
}
