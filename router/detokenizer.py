"""Token ids to text as they arrive: each token costs the same however long the answer is.

A vocabulary is read once into bytes per token, so that a character spread over several tokens is emitted when its last
byte is there and never as U+FFFD before. Bytes that can never become a character become U+FFFD at once.

Two families cover the models in use: byte-level BPE (GPT-2, Llama 3, Qwen, ...), where any token may hold any bytes,
and the SentencePiece chain (Llama 2, Mistral, Gemma, ...), where single bytes are spelt `<0xE4>`. The text equals the
tokenizers library's `decode` of all ids with one exception: in a run of byte tokens that holds an invalid byte, the
library gives up the whole run; here the valid characters of the run, already streamed, stay.
"""

import codecs
import re
from collections.abc import Iterable, Mapping
from typing import Any

from penstock.errors import ModelError
from penstock.router.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("penstock.each_byte", _replace_each_byte)


class Vocabulary:
    """What each token id adds to the text, as bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ModelError when the tokenizer's decoder is of another family."""
        self.tokenizer = tokenizer
        self._pieces: dict[int, tuple[bytes, bool]] = {}
        self.byte_level = False
        self.byte_fallback = False
        self.strip_first = 0
        """Leading spaces removed from the whole text."""
        self._replacements: list[tuple[str, str]] = []
        self._drop_first_meta = ""
        """A character that is dropped from the first token and a space in all others (Metaspace)."""
        fused = False
        for step in _steps(tokenizer.decoder):
            fused = self._add_step(step, fused)

    def _add_step(self, step: Mapping[str, Any], fused: bool) -> bool:
        match step:
            case {"type": "ByteLevel"}:
                self.byte_level = True
            case {"type": "ByteFallback"}:
                self.byte_fallback = True
            case {"type": "Fuse"}:
                return True
            case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if not fused:
                self._replacements.append((pattern, content))
            case {"type": "Metaspace", "replacement": meta} if not fused:
                self._replacements.append((meta, " "))
                if step.get("prepend_scheme", "always") != "never":
                    self._drop_first_meta = meta
            case {"type": "Strip", "content": " ", "start": start, "stop": 0} if fused:
                self.strip_first = start
            case _:
                raise ModelError(f"tokenizer.json has decoder step {dict(step)}, which the router cannot stream")
        return fused

    def piece(self, token_id: int, *, first: bool = False) -> tuple[bytes, bool]:
        """(bytes, whether they may be part of a character). An unknown id (a padded vocabulary) is (b"", True)."""
        found = self._pieces.get(token_id)
        if found is None:
            token = self.tokenizer.token(token_id)
            found = self._pieces[token_id] = (b"", True) if token is None else self._read(token)
        if first and self._drop_first_meta:
            token = self.tokenizer.token(token_id)
            return found if token is None else (token.replace(self._drop_first_meta, "").encode(), False)
        return found

    def _read(self, token: str) -> tuple[bytes, bool]:
        if self.byte_level:
            raw = [_BYTE_OF_CHAR.get(char) for char in token]
            return (token.encode() if None in raw else bytes(byte for byte in raw if byte is not None)), True
        for pattern, content in self._replacements:
            token = token.replace(pattern, content)
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)]), True
        return token.encode(), False


class Detokenizer:
    """The text of one answer, token by token. Special tokens have no text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._special = vocabulary.tokenizer.special_ids
        errors = "replace" if vocabulary.byte_level else "penstock.each_byte"
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)
        self._first = True
        self._strip = vocabulary.strip_first

    def push(self, token_id: int) -> str:
        """The text that is certain now, possibly none or the end of an earlier character."""
        if token_id in self._special:
            return ""
        piece, partial = self._vocabulary.piece(token_id, first=self._first)
        if partial and not piece:
            return ""
        self._first = False
        text = self._decoder.decode(piece) if partial else self._decoder.decode(b"", True) + piece.decode()
        return self._stripped(text) if self._strip else text

    def finish(self) -> str:
        """What was held back for a character that never came to its end."""
        return self._stripped(self._decoder.decode(b"", True))

    def _stripped(self, text: str) -> str:
        rest = text
        while self._strip and rest.startswith(" "):
            rest = rest[1:]
            self._strip -= 1
        if rest:
            self._strip = 0
        return rest


def decode(vocabulary: Vocabulary, token_ids: Iterable[int]) -> str:
    """The whole text of `token_ids`."""
    detokenizer = Detokenizer(vocabulary)
    return "".join([detokenizer.push(token_id) for token_id in token_ids]) + detokenizer.finish()


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        raise ModelError("tokenizer.json has no decoder; the router cannot turn this model's tokens into text")
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    return [decoder]


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()
