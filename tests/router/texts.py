"""Random texts that are hard on tokenizers: all of Unicode, whitespace runs, special tokens spelt out."""

import random
from collections.abc import Iterator, Sequence

_RANGES = [
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x300, 0x36F),  # combining marks
    (0x400, 0x4FF),
    (0x5D0, 0x5EA),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0x1100, 0x11FF),
    (0x2000, 0x206F),  # spaces, joiners, direction marks
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xE0FF),
    (0xFB00, 0xFB4F),
    (0xFE00, 0xFE0F),
    (0xFF00, 0xFFEF),
    (0x1F300, 0x1FAFF),
    (0x20000, 0x2A6DF),
    (0xF0000, 0xF00FF),
]
_WHITESPACE = [
    " ",
    "  ",
    "    ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u3000",
    "\u2028",
    " \n ",
    "\v",
    "\f",
    "\u0085",
]
_ODD = ["\x00", "\x01", "\x1b", "\x7f", "\ufeff", "\ufffd", "\u200d", "\u200b", "\ufffe", "▁", "Ġ", "##", "<0x41>"]
_WORDS = [
    "the",
    "The",
    "penstock",
    "don't",
    "café",
    "cafe\u0301",
    "naïve",
    "123",
    "1e10",
    "0x1F",
    "def",
    "==",
    "👩‍🚀",
    "🇩🇪",
    "ﬁ",
]


def random_texts(count: int, special: Sequence[str], seed: int) -> Iterator[str]:
    """`count` texts; `special` are spelt out in some of them."""
    random_ = random.Random(seed)
    for _ in range(count):
        yield "".join(_piece(random_, special) for _ in range(random_.randrange(12)))


def _piece(random_: random.Random, special: Sequence[str]) -> str:
    kind = random_.random()
    if kind < 0.35:
        return random_.choice(_WORDS) + random_.choice(["", " "])
    if kind < 0.65:
        low, high = random_.choice(_RANGES)
        return "".join(chr(random_.randint(low, high)) for _ in range(random_.randint(1, 5)))
    if kind < 0.85:
        return random_.choice(_WHITESPACE)
    if kind < 0.93:
        return random_.choice(_ODD)
    return random_.choice(special)
