"""The tools that the demonstration model is taught to call: their schemas, and sentences that ask for them."""

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from penstock.demo import words


@dataclass(frozen=True)
class Tool:
    """A function offered in a prompt. `parameters` maps names to JSON types; `phrasings` mention each of them."""

    name: str
    description: str
    parameters: tuple[tuple[str, str], ...]
    phrasings: tuple[str, ...]

    def schema(self) -> dict[str, Any]:
        """The entry of the `tools` list of a chat completion request."""
        parameters = {
            "type": "object",
            "properties": {name: {"type": kind} for name, kind in self.parameters},
            "required": [name for name, _ in self.parameters],
        }
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }


@dataclass(frozen=True)
class Call:
    """A sentence that asks for a tool, and the arguments (a JSON object, as text) that the tool should get."""

    tool: Tool
    question: str
    arguments: str
    key: str


TOOLS = (
    Tool(
        "get_weather",
        "Weather of a city.",
        (("city", "string"),),
        (
            "What is the weather in {city}?",
            "How is the weather in {city}?",
            "Is it raining in {city}?",
            "Weather in {city}, please.",
        ),
    ),
    Tool(
        "set_timer",
        "Set a timer.",
        (("minutes", "integer"),),
        (
            "Set a timer for {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "Start a timer of {minutes} minutes.",
            "Remind me in {minutes} minutes.",
        ),
    ),
    Tool(
        "send_message",
        "Send a message to a person.",
        (("to", "string"), ("text", "string")),
        ("Tell {to}: {text}", "Send {to} this message: {text}", "Write to {to}: {text}"),
    ),
    Tool(
        "play_song",
        "Play a song.",
        (("title", "string"),),
        ("Play {title}.", "Play the song {title}.", "I want to hear {title}.", "Put on {title}."),
    ),
    Tool(
        "convert",
        "Convert money.",
        (("amount", "integer"), ("currency", "string")),
        (
            "Convert {amount} euros to {currency}.",
            "How much is {amount} euros in {currency}?",
            "Change {amount} euros into {currency}.",
        ),
    ),
    Tool(
        "search",
        "Search the web.",
        (("query", "string"),),
        ("Search for {query}.", "Look up {query} on the web.", "Find pages about {query}."),
    ),
    Tool(
        "switch",
        "Switch a device on or off.",
        (("device", "string"), ("state", "string")),
        ("Switch {state} the {device}.", "Turn {state} the {device}.", "Please turn the {device} {state}."),
    ),
    Tool(
        "book_table",
        "Book a table.",
        (("people", "integer"), ("city", "string")),
        (
            "Book a table for {people} in {city}.",
            "I need a table for {people} people in {city}.",
            "Reserve a table in {city} for {people}.",
        ),
    ),
)


def _value(parameter: str, rng: Random) -> str | int:
    """Something that fits the parameter; phrases are made of random words, so that they must be read, not known."""
    match parameter:
        case "city":
            return rng.choice(words.CITIES)
        case "to":
            return rng.choice(words.PEOPLE)
        case "currency":
            return rng.choice(words.CURRENCIES)
        case "device":
            return rng.choice(words.DEVICES)
        case "state":
            return rng.choice(("on", "off"))
        case "minutes" | "amount" | "people":
            return rng.randrange(2, 100)
        case _:
            phrase = [rng.choice(words.ADJECTIVES), rng.choice(words.NOUNS), rng.choice(words.NOUNS)]
            return " ".join(phrase[: rng.randint(1, 3)])


def draw_call(rng: Random) -> Call:
    """A random tool with random arguments."""
    tool = rng.choice(TOOLS)
    arguments = {name: _value(name, rng) for name, _ in tool.parameters}
    text = json.dumps(arguments)
    return Call(tool, rng.choice(tool.phrasings).format(**arguments), text, f"{tool.name} {text}")


def draw_tools(rng: Random, wanted: Tool | None = None) -> tuple[Tool, ...]:
    """One to three tools in random order, `wanted` among them."""
    others = [tool for tool in TOOLS if tool is not wanted]
    tools = rng.sample(others, rng.randint(0 if wanted else 1, 2)) + ([wanted] if wanted else [])
    rng.shuffle(tools)
    return tuple(tools)
