"""A tiny Qwen3 checkpoint with random weights and a byte-level tokenizer trained on the spot."""

import json
from pathlib import Path

from transformers import Qwen3Config

from tests.engine.model.tiny import Case, save
from tests.router.model_folders import byte_level_bpe, write_folder

CONTEXT_TOKENS = 4096


def write_model(folder: Path, **changes: int) -> Path:
    """Its greedy answers vary from token to token. `changes` are fields of Qwen3Config, such as a `hidden_size`."""
    tokenizer = byte_level_bpe()
    eos = "<|im_end|>"
    shape = {
        "head_dim": 16,
        "tie_word_embeddings": True,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": CONTEXT_TOKENS,
        "eos_token_id": tokenizer.token_to_id(eos),
    }
    write_folder(folder, tokenizer, eos=eos)
    save(Case(Qwen3Config, shape | changes), folder)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == shape["vocab_size"]
    return folder
