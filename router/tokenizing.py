"""Token ids of what clients send: checked for length first, long texts aside, of conversations only what is new."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from penstock.errors import RequestError
from penstock.router.config import RouterConfig
from penstock.router.conversation import TurnTokenizer
from penstock.router.model import ServedModel
from penstock.telemetry.trace import current

T = TypeVar("T")

_MOST_CHARS_PER_TOKEN = 128
"""Vocabularies have no longer tokens than this, and those only for runs of spaces and dashes."""


class Tokenizing:
    """One per router. A text that cannot fit into the context is refused without tokenizing it: 5 MB take ten seconds
    (measured, one core)."""

    def __init__(self, model: ServedModel, config: RouterConfig, context_tokens: Callable[[], int]) -> None:
        """`context_tokens` gives the longest prompt that is served now."""
        self._tokenizer = model.tokenizer
        self._context_tokens = context_tokens
        self._inline_chars = config.encode_inline_chars
        template, contents = model.chat_template, [token.content for token in model.tokenizer.added_tokens]
        marks = [content for content in contents if template is not None and template.writes(content)]
        self._turns = TurnTokenizer(model.tokenizer, marks, config.turn_cache_bytes)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="encode")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def text(self, text: str, *, add_special_tokens: bool, field: str) -> list[int]:
        """Token ids of `text`. Raises RequestError naming `field`."""
        self._check_length(text, field)
        encode = self._tokenizer.encode
        return await self._tokenize_aside(len(text), lambda: encode(text, add_special_tokens=add_special_tokens))

    async def conversation(self, text: str, salt: str, *, field: str) -> list[int]:
        """Token ids of a rendered conversation, of which only what is new to this router is tokenized.

        Raises RequestError naming `field`.
        """
        self._check_length(text, field)
        turns = self._turns
        pieces = turns.split(text)
        found = turns.recall(pieces, salt)
        missing = [piece for piece, ids in zip(pieces, found, strict=True) if ids is None]
        new = await self._tokenize_aside(sum(map(len, missing)), lambda: turns.tokenize(missing))
        return turns.join(pieces, salt, found, new)

    def _check_length(self, text: str, field: str) -> None:
        most = self._context_tokens()
        if len(text) > _MOST_CHARS_PER_TOKEN * most:
            raise RequestError(
                f"the prompt has {len(text)} characters, which is more than the context holds, {most} tokens",
                field=field,
                code="context_length_exceeded",
            )

    async def _tokenize_aside(self, num_chars: int, work: Callable[[], T]) -> T:
        """The tokenizer releases the GIL."""
        with current().span("tokenize", chars=num_chars):
            return await self.aside(num_chars, work)

    async def aside(self, size: int, work: Callable[[], T]) -> T:
        """The result of `work` on so many characters or bytes, in a thread when they are many: until it is done no
        stream would go on, and every worker would seem silent."""
        if size <= self._inline_chars:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
