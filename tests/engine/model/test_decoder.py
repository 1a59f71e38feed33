"""The decoder says what transformers says, for every family, however the prompt is cut into steps."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penstock.engine.model import Decoder, load_model
from tests.engine.model.paged import PagedSequences, decode, prefill
from tests.engine.model.tiny import CASES, VOCAB_SIZE, save

PROMPT_TOKENS = 41
OUTPUT_TOKENS = 24
LOGPROB_TOLERANCE = 1e-4


@dataclass
class Pair:
    """Our decoder, prompts, and what transformers answers to them."""

    decoder: Decoder
    prompts: list[list[int]]
    tokens: list[list[int]]
    logprobs: list[Tensor]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder: Path = tmp_path_factory.mktemp("model")
    reference = save(CASES[request.param], folder)
    generator = torch.Generator().manual_seed(7)
    prompts = torch.randint(VOCAB_SIZE, (2, PROMPT_TOKENS), generator=generator)
    answer = reference.generate(  # type: ignore[operator]
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=OUTPUT_TOKENS,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logprobs = torch.stack(answer.logits, dim=1).log_softmax(-1)
    tokens = answer.sequences[:, PROMPT_TOKENS:].tolist()
    return Pair(load_model(folder), prompts.tolist(), tokens, list(logprobs))


@pytest.mark.parametrize("chunk", [PROMPT_TOKENS, 7, 1], ids=["full-prefill", "chunks", "single-tokens"])
def test_greedy_output_equals_transformers_token_for_token(pair: Pair, chunk: int) -> None:
    sequences = PagedSequences(pair.decoder, 2, PROMPT_TOKENS + OUTPUT_TOKENS)
    tokens, logprobs = decode(sequences, prefill(sequences, pair.prompts, chunk), OUTPUT_TOKENS)
    assert all(len(set(output)) >= 8 for output in pair.tokens), "outputs too monotonous to prove anything"
    assert tokens == pair.tokens
    for ours, theirs in zip(logprobs, pair.logprobs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=LOGPROB_TOLERANCE, rtol=0)


@pytest.mark.parametrize("fault", ["zeroed block", "swapped blocks", "shifted positions"])
def test_equality_would_notice_broken_kv(pair: Pair, fault: str) -> None:
    sequences = PagedSequences(pair.decoder, 2, PROMPT_TOKENS + OUTPUT_TOKENS)
    last = prefill(sequences, pair.prompts, PROMPT_TOKENS)
    inject(sequences, fault)
    tokens, _ = decode(sequences, last, OUTPUT_TOKENS)
    assert all(ours != theirs for ours, theirs in zip(tokens, pair.tokens, strict=True))


def inject(sequences: PagedSequences, fault: str) -> None:
    """Breaks the KV of both prompts, within the shortest sliding window (12 tokens, 4 per block).

    Swapped are blocks of two sequences: keys carry their positions, so attention over the full context does not depend
    on the order of blocks, and exchanging two of one sequence is no fault.
    """
    tables = sequences.tables
    if fault == "zeroed block":
        sequences.kv[tables[:, 9].long()] = 0.0
    elif fault == "swapped blocks":
        tables[:, 9] = tables[:, 9].flip(0)
    else:
        sequences.position_shift = 1
