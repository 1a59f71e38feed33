"""The demonstration model through the engine: transformers' tokens, on one worker and on two."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from penstock.demo import MODEL_FOLDER
from penstock.demo.evaluate import PROBES, held_out_prompts, messages_of
from penstock.engine.engine import Engine
from penstock.engine.kv.layout import KVLayout
from penstock.engine.model import load_model
from penstock.engine.runner import Runner
from penstock.hashing import BlockHasher
from tests.engine.harness import GENERATION, config, request, run
from tests.engine.pair import Pair

NUM_TOKENS = 24


def engine() -> Engine:
    """In float32 and in poison mode, with blocks for one prompt of 1,000 tokens."""
    model = load_model(MODEL_FOLDER, torch.float32)
    model.pack()
    shape = model.config
    layout = KVLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, 16, torch.float32)
    runner = Runner(model, layout, 80)
    runner.kv.fill_(float("nan"))
    return Engine(config(block_size=16, max_step_tokens=256), runner, lambda salt: BlockHasher(b"", salt), GENERATION)


@pytest.mark.parametrize("probe", [probe for probe in PROBES if "4" not in probe])
def test_greedy_tokens_equal_those_of_transformers_on_one_worker_and_on_two(probe: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    oracle = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    [dialogue] = held_out_prompts(probe, 1)
    prompt = tokenizer.apply_chat_template(messages_of(dialogue), add_generation_prompt=True, return_dict=False)
    options = {"max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS, "do_sample": False}
    expected = oracle.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
    each = request("a", tuple(prompt), max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS)
    assert run(engine(), each)["a"].tokens[0] == expected
    with Pair(prefill=engine(), decode=engine()) as pair:
        answer = pair.run(each).answers["a"]
        assert answer.tokens[0] == expected
        assert answer.done is not None
        assert answer.done.pulled_blocks == -(-len(prompt) // 16)
