"""The random-weight models of the benchmarks are what they claim to be."""

from hashlib import blake2b
from pathlib import Path

import pytest
import transformers

from bench.models import LLAMA_135M, SMALL, write_model
from penstock.engine.model import load_config, weight_bytes
from penstock.router.tokenizer import Tokenizer


def test_the_same_bytes_are_written_on_every_call(tmp_path: Path) -> None:
    digests = {
        blake2b((write_model(SMALL, tmp_path / name) / "model.safetensors").read_bytes()).digest() for name in "ab"
    }
    assert len(digests) == 1


def test_the_shapes_have_the_parameters_that_their_names_say(tmp_path: Path) -> None:
    assert LLAMA_135M.parameters == pytest.approx(135e6, rel=0.01)
    assert SMALL.parameters == pytest.approx(5e6, rel=0.06)
    model = transformers.AutoModelForCausalLM.from_pretrained(write_model(SMALL, tmp_path))
    norms = (2 * SMALL.layers + 1) * SMALL.hidden
    assert sum(weight.numel() for weight in model.parameters()) == SMALL.parameters + norms


def test_our_engine_reads_the_same_shape(tmp_path: Path) -> None:
    config = load_config(write_model(SMALL, tmp_path))
    assert (config.num_layers, config.num_kv_heads, config.vocab_size) == (SMALL.layers, SMALL.kv_heads, SMALL.vocab)
    assert weight_bytes(config, config.dtype, None) >= 2 * SMALL.parameters


def test_every_token_of_the_tokenizer_has_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_model(SMALL, tmp_path))
    assert all(tokenizer.token(token_id) for token_id in range(SMALL.vocab))
