"""Packs dialogues into rows of tokens of one length, each skill with its share of the tokens."""

from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from penstock.demo.text import make_dialogue
from penstock.demo.tokenizer import PAD, render

# Shares of the tokens, not of the questions. Sums and spelling are learned last and by number of examples.
SHARES = {"self": 2, "facts": 4, "sums": 26, "spelling": 24, "copying": 5, "retrieval": 25, "tools": 14}
_PROMPT_WEIGHT = 0.02  # questions are partly noise; a little of them still shapes the embeddings
_TOKENS_PER_LINE, _TOKENS_PER_QUESTION = 14, 90


class RowMaker:
    """An endless source of training rows; the same seed gives the same rows."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = Random(seed)
        self._made = dict.fromkeys(SHARES, 0.0)
        self._separator = tokenizer.encode(PAD).ids[0]

    def batch(self, num_rows: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Tokens [num_rows, num_tokens + 1] int64 and the weight of each in the loss, float32, of the same shape."""
        rows = [self._row(num_tokens + 1) for _ in range(num_rows)]
        return torch.tensor([tokens for tokens, _ in rows]), torch.tensor([weights for _, weights in rows])

    def _row(self, num_tokens: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        weights: list[float] = []
        while (room := num_tokens - len(tokens)) > 0:
            num_lines = (room - _TOKENS_PER_QUESTION) // _TOKENS_PER_LINE
            skill = self._most_owed(allow_retrieval=num_lines >= 2)
            dialogue = make_dialogue(skill, self._rng, held_out=False, num_lines=num_lines)
            pieces = render(dialogue, sort_keys=self._rng.random() < 0.5)
            before = len(tokens)
            for encoding, (_, learn) in zip(self._tokenizer.encode_batch([t for t, _ in pieces]), pieces, strict=True):
                tokens += encoding.ids
                weights += [1.0 if learn else _PROMPT_WEIGHT] * len(encoding.ids)
            tokens.append(self._separator)
            weights.append(_PROMPT_WEIGHT)
            self._made[skill] += min(len(tokens), num_tokens) - before
        return tokens[:num_tokens], weights[:num_tokens]

    def _most_owed(self, allow_retrieval: bool) -> str:
        """The skill furthest behind its share, with some chance in it so that the order does not settle."""
        skills = [skill for skill in SHARES if allow_retrieval or skill != "retrieval"]
        return min(skills, key=lambda skill: (self._made[skill] + self._rng.random() * 2000) / SHARES[skill])
