"""What the demonstration model knows: its own story, a table of facts, and the words that it plays with.

Data alone, so that the knowledge can be read and changed without reading how text is made of it. Each table keeps
the phrasings used for training apart from those kept for evaluation: a held-out question is a fact phrased anew.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One thing the model can say, and the questions that call for it; `train` and `held_out` share no question."""

    answer: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Relation:
    """A column of the table of facts: `{key}` stands for the thing asked about, `{value}` for what is known of it."""

    answer: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    facts: dict[str, str]


def _definition(name: str, answer: str) -> Topic:
    """A term of the system, asked for in the many ways people ask what a thing is."""
    train = (
        "What is {}?",
        "Explain {}.",
        "Tell me what {} is.",
        "What does {} mean?",
        "Define {}.",
        "What is meant by {}?",
        "Can you explain {}?",
        "Describe {} to me.",
        "I have never heard of {}.",
        "{}, what is that?",
        "Do you know what {} is?",
        "Teach me about {}.",
    )
    held_out = (
        "Could you say what {} is?",
        "Tell me about {}.",
        "Explain to me what {} means.",
        "How would you define {}?",
        "Please describe {}.",
        "I want to know what {} is.",
        "What do you know about {}?",
        "Give me a definition of {}.",
    )
    return Topic(answer, tuple(t.format(name) for t in train), tuple(t.format(name) for t in held_out))


TOPICS: dict[str, Topic] = {
    "Penstock": _definition(
        "Penstock", "Penstock is a system that serves language models with prefill and decode on separate machines."
    ),
    "prefill": _definition(
        "prefill", "Prefill reads the whole prompt at once and fills the KV cache, which takes much computing."
    ),
    "decode": _definition("decode", "Decode writes the answer one token at a time, which takes much memory bandwidth."),
    "router": _definition(
        "the router", "The router is the front door: it receives each request and chooses the workers that serve it."
    ),
    "KV cache": _definition(
        "the KV cache", "The KV cache keeps the keys and values of past tokens, so that they are computed only once."
    ),
    "token": _definition("a token", "A token is a piece of text, the unit in which a language model reads and writes."),
    "block": _definition(
        "a block", "A block is a fixed number of tokens in the KV cache, handed out and freed as one."
    ),
    "operator": _definition(
        "the operator", "The operator watches the cluster and keeps the right number of workers running."
    ),
    "name": Topic(
        "My name is Penstock demo.",
        (
            "What is your name?",
            "Tell me your name.",
            "What are you called?",
            "What should I call you?",
            "Do you have a name?",
            "Your name, please.",
            "How are you called?",
            "By what name do you go?",
        ),
        (
            "May I know your name?",
            "Could you tell me your name?",
            "What name do you have?",
            "Say your name.",
            "What is the name they gave you?",
            "And what is your name?",
        ),
    ),
    "self": Topic(
        "I am Penstock demo, a small language model trained from scratch to show Penstock at work.",
        (
            "Who are you?",
            "What are you?",
            "Tell me about yourself.",
            "Introduce yourself.",
            "Are you a language model?",
            "What kind of model are you?",
            "Describe yourself.",
            "Say who you are.",
        ),
        (
            "Can you tell me who you are?",
            "Who are you, really?",
            "What are you exactly?",
            "Tell me who you are.",
            "Please introduce yourself.",
            "Say something about yourself.",
        ),
    ),
    "skills": Topic(
        "I can talk about Penstock, recall facts, add and subtract, spell, copy, look things up and call tools.",
        (
            "What can you do?",
            "What are you good at?",
            "How can you help me?",
            "What are your skills?",
            "List your skills.",
            "What do you do?",
            "Help.",
            "Which things can you do?",
        ),
        (
            "What can you do for me?",
            "Tell me what you can do.",
            "What are you able to do?",
            "How could you help?",
            "What skills do you have?",
            "Please list your skills.",
        ),
    ),
    "hello": Topic(
        "Hello! How can I help you?",
        ("Hello!", "Hi!", "Hello.", "Hi", "Good morning.", "Good evening!", "Hey!", "Greetings.", "Hi there!"),
        ("Hello there!", "Good morning!", "Hey.", "Hi.", "Greetings!", "Hello to you!"),
    ),
    "thanks": Topic(
        "You are welcome!",
        (
            "Thank you.",
            "Thanks!",
            "Thanks a lot.",
            "Many thanks!",
            "Thank you very much.",
            "That helped, thanks.",
            "Thank you so much!",
        ),
        ("Thank you!", "Thanks.", "Many thanks.", "Thanks a lot!", "Thank you very much!", "Thanks, that helped."),
    ),
    "bye": Topic(
        "Goodbye!",
        ("Goodbye.", "Bye!", "See you.", "Bye bye.", "Good night.", "See you later!", "I have to go."),
        ("Goodbye!", "Bye.", "See you!", "See you later.", "Good night!", "I have to go now."),
    ),
}

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Portugal": "Lisbon",
    "Ireland": "Dublin",
    "Hungary": "Budapest",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Iran": "Tehran",
}
LEGS = {
    "a spider": "eight",
    "an ant": "six",
    "a bee": "six",
    "a dog": "four",
    "a horse": "four",
    "a cow": "four",
    "a bird": "two",
    "a hen": "two",
    "a snake": "zero",
    "a fish": "zero",
    "a crab": "ten",
    "a goat": "four",
}
COLOURS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "blood": "red",
    "coal": "black",
    "a lemon": "yellow",
    "a carrot": "orange",
    "milk": "white",
    "a frog": "green",
    "a cherry": "red",
    "chocolate": "brown",
    "a plum": "purple",
    "a raven": "black",
    "a flamingo": "pink",
    "an elephant": "grey",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "old": "new",
    "high": "low",
    "wet": "dry",
    "light": "dark",
    "hard": "soft",
    "full": "empty",
    "open": "closed",
    "early": "late",
    "near": "far",
    "rich": "poor",
    "loud": "quiet",
    "strong": "weak",
}
SYMBOLS = {
    "gold": "Au",
    "silver": "Ag",
    "iron": "Fe",
    "copper": "Cu",
    "lead": "Pb",
    "oxygen": "O",
    "carbon": "C",
    "helium": "He",
    "sodium": "Na",
    "tin": "Sn",
    "zinc": "Zn",
    "neon": "Ne",
}

RELATIONS: dict[str, Relation] = {
    "capital": Relation(
        "The capital of {key} is {value}.",
        (
            "What is the capital of {key}?",
            "Name the capital of {key}.",
            "Which city is the capital of {key}?",
            "Tell me the capital of {key}.",
            "The capital of {key} is which city?",
            "{key}: what is its capital?",
            "I forgot the capital of {key}.",
            "What city is {key}'s capital?",
        ),
        ("Do you know the capital of {key}?", "Can you name the capital of {key}?", "What is {key}'s capital?"),
        CAPITALS,
    ),
    "legs": Relation(
        "The number of legs of {key} is {value}.",
        (
            "How many legs does {key} have?",
            "What is the number of legs of {key}?",
            "Tell me how many legs {key} has.",
            "On how many legs does {key} walk?",
            "Count the legs of {key}.",
            "The legs of {key}, how many are there?",
            "How many legs has {key}?",
        ),
        (
            "Do you know how many legs {key} has?",
            "How many legs are there on {key}?",
            "Give the number of legs of {key}.",
        ),
        LEGS,
    ),
    "colour": Relation(
        "The colour of {key} is {value}.",
        (
            "What colour is {key}?",
            "What is the colour of {key}?",
            "Tell me the colour of {key}.",
            "Which colour does {key} have?",
            "Name the colour of {key}.",
            "The colour of {key} is what?",
            "Of what colour is {key}?",
        ),
        ("Do you know the colour of {key}?", "What colour does {key} have?", "Can you name the colour of {key}?"),
        COLOURS,
    ),
    "opposite": Relation(
        "The opposite of {key} is {value}.",
        (
            "What is the opposite of {key}?",
            "Name the opposite of {key}.",
            "Tell me the opposite of {key}.",
            "Which word is the opposite of {key}?",
            "The opposite of {key} is what?",
            "Give an opposite for {key}.",
            "What word means the opposite of {key}?",
        ),
        ("Do you know the opposite of {key}?", "Can you name the opposite of {key}?", "Give the opposite of {key}."),
        OPPOSITES,
    ),
    "symbol": Relation(
        "The chemical symbol of {key} is {value}.",
        (
            "What is the chemical symbol of {key}?",
            "Name the chemical symbol of {key}.",
            "Tell me the symbol of {key}.",
            "Which chemical symbol does {key} have?",
            "The chemical symbol of {key} is what?",
            "What symbol stands for {key}?",
            "How do chemists write {key}?",
        ),
        (
            "Do you know the chemical symbol of {key}?",
            "Can you name the symbol of {key}?",
            "What is the symbol for {key}?",
        ),
        SYMBOLS,
    ),
}
