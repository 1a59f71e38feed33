"""Tokenizes conversations piece by piece, so that a further turn costs what is new in it and not the whole again.

A text is cut in front of special tokens, and the ids of each piece are remembered. That gives what tokenizing the whole
gives: tokenizers first split a text at its added tokens, and normalize, pre-tokenize and merge each part by itself
(tokenizers' `AddedVocabulary::extract_and_normalize`). It holds only for tokens that are found wherever they stand:
not those that look at their neighbours (`single_word`, `lstrip`), that are searched for in the normalized text, or that
could overlap another added token. A part also may know whether it is the text's first (Metaspace's `prepend_scheme`),
and every piece but the first begins with a special token, as in the whole. Tests compare both for many tokenizers.
"""

import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

from tokenizers import AddedToken

from penstock.router.tokenizer import Tokenizer

Ids: TypeAlias = Sequence[int]

_ENTRY_BYTES = 300
"""Of the dict, the key and the tuple."""


class TurnTokenizer:
    """Token ids of texts, from a cache of their pieces that holds the last used ones in `max_bytes`.

    Pieces of one salt are never used for another: how long tokenizing takes would tell a tenant what others have sent.
    """

    def __init__(self, tokenizer: Tokenizer, marks: Collection[str], max_bytes: int) -> None:
        """`marks` are tokens that begin or end a message; texts are cut in front of those where that is safe."""
        self._tokenizer = tokenizer
        safe = sorted(safe_marks(marks, tokenizer.added_tokens), key=len, reverse=True)
        can_cut = bool(safe) and tokenizer.is_deterministic
        self._mark = re.compile("|".join(map(re.escape, safe))) if can_cut else None
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._ids: OrderedDict[tuple[str, str], Ids] = OrderedDict()
        self._ints: list[int] = []

    def split(self, text: str) -> list[str]:
        """The pieces of `text`; joined they are the text."""
        if self._mark is None:
            return [text]
        starts = [match.start() for match in self._mark.finditer(text)]
        if not starts:
            return [text]
        pieces = [text[start:stop] for start, stop in zip(starts, [*starts[1:], len(text)], strict=True)]
        return [text[: starts[0]], *pieces] if starts[0] else pieces

    def recall(self, pieces: Iterable[str], salt: str) -> list[Ids | None]:
        """The token ids of each piece, None for those that are to be tokenized."""
        found: list[Ids | None] = []
        for piece in pieces:
            ids = self._ids.get((salt, piece))
            if ids is not None:
                self._ids.move_to_end((salt, piece))
            found.append(ids)
        return found

    def tokenize(self, pieces: Iterable[str]) -> dict[str, list[int]]:
        """Token ids of each piece. May run in a thread. Raises RequestError for what is not Unicode text."""
        return {piece: self._tokenizer.encode(piece, add_special_tokens=False) for piece in pieces}

    def join(
        self, pieces: Iterable[str], salt: str, found: Iterable[Ids | None], new: Mapping[str, list[int]]
    ) -> list[int]:
        """Token ids of the whole, from what `recall` and `tokenize` gave; the latter is remembered."""
        whole: list[int] = []
        for piece, ids in zip(pieces, found, strict=True):
            if ids is None:
                ids = self._remember((salt, piece), new[piece])
            whole += ids
        return whole

    def _remember(self, key: tuple[str, str], ids: Sequence[int]) -> Ids:
        if key not in self._ids:
            shared = self._ids[key] = self._shared(ids)
            self._num_bytes += _num_bytes(key, shared)
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= _num_bytes(*self._ids.popitem(last=False))
        return self._ids.get(key, ids)

    def _shared(self, ids: Ids) -> Ids:
        """The same ids without an object for each: 8 instead of 40 bytes per token."""
        highest = max(ids, default=0)
        if highest >= len(self._ints):
            self._ints += range(len(self._ints), highest + 1)
        return tuple([self._ints[token] for token in ids])


def safe_marks(marks: Collection[str], added: Collection[AddedToken]) -> list[str]:
    """Those `marks` in front of which any text may be cut."""
    return [
        token.content
        for token in added
        if token.content in marks
        and not (token.single_word or token.lstrip or token.normalized)
        and token.content == token.content.strip()
        and not re.match(r"\w|$", token.content)  # else a single_word token in front of it would not be seen as a word
        and not any(_may_cover(other.content, token.content) for other in added)
    ]


def _may_cover(other: str, mark: str) -> bool:
    """Whether an occurrence of `other` can hide one of `mark`: contain it, or reach into it from the left."""
    if other != mark and mark in other:
        return True
    return any(other.endswith(mark[:length]) for length in range(1, min(len(mark), len(other))))


def _num_bytes(key: tuple[str, str], ids: Ids) -> int:
    return _ENTRY_BYTES + 4 * len(key[1]) + 8 * len(ids)
