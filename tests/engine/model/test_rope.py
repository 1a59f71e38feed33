"""Rotary tables are transformers' own, bit for bit, in the new and in the old spelling."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from penstock.engine.model.rope import RopeConfig, cos_sin_table

NUM_POSITIONS = 5000
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
YARN = {"factor": 4.0, "original_max_position_embeddings": 512}

RULES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "llama3", **LLAMA3},
    {"rope_type": "yarn", **YARN},
    {"rope_type": "yarn", **YARN, "attention_factor": 0.9},
    {"rope_type": "yarn", **YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    {"rope_type": "yarn", **YARN, "mscale": 0.7, "mscale_all_dim": 1.1},
]


def config_of(**fields: Any) -> LlamaConfig:
    return LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=NUM_POSITIONS, **fields)


def reference_table(config: LlamaConfig) -> torch.Tensor:
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(NUM_POSITIONS)[None])
    half = cos.shape[-1] // 2
    return torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=-1)


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_table_equals_transformers(rule: dict[str, Any], spelling: str) -> None:
    if spelling == "rope_parameters":
        config = config_of(rope_parameters={**rule, "rope_theta": 50_000.0})
    else:
        old = {"type": rule["rope_type"], **{key: value for key, value in rule.items() if key != "rope_type"}}
        config = config_of(rope_theta=50_000.0, rope_scaling=old)
    rope = RopeConfig.from_parameters(config.rope_parameters)
    assert (rope.kind, rope.theta) == (rule["rope_type"], 50_000.0)
    assert torch.equal(cos_sin_table(rope, 64, NUM_POSITIONS), reference_table(config))


def test_every_rule_is_one_of_its_own() -> None:
    """Equal tables would make the test above compare a rule with another."""
    configs = [config_of(rope_parameters={**rule, "rope_theta": 50_000.0}) for rule in RULES]
    tables = [cos_sin_table(RopeConfig.from_parameters(config.rope_parameters), 64, 64) for config in configs]
    assert all(not torch.equal(a, b) for i, a in enumerate(tables) for b in tables[:i])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rope_type": "dynamic"}, "'dynamic' is not supported; known are default, linear, llama3, yarn"),
        ({"rope_type": "linear"}, "factor must be a positive number, not None"),
        ({"rope_type": "linear", "factor": -2}, "factor must be a positive number, not -2"),
        ({"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}, "must be smaller than high_freq_factor"),
        ({"rope_theta": float("nan")}, "rope_theta must be a positive number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    ],
)
def test_impossible_rules_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RopeConfig.from_parameters({"rope_type": "default", "rope_theta": 10_000.0} | changes)
