"""The training network computes what transformers' Qwen3 computes from the same weights."""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from penstock.demo.network import Decoder, DecoderShape
from penstock.demo.train import hugging_face_config


def test_logits_equal_those_of_transformers() -> None:
    torch.manual_seed(0)
    shape = DecoderShape(vocab_size=97, hidden_size=48, intermediate_size=80, num_layers=2, num_heads=4, head_dim=16)
    ours = Decoder(shape)
    for weight in ours.parameters():  # away from the identity that training starts from
        torch.nn.init.normal_(weight, std=0.3)
    theirs = Qwen3ForCausalLM(Qwen3Config(**hugging_face_config(shape))).float().eval()
    theirs.load_state_dict({f"model.{name}": value for name, value in ours.state_dict().items()}, strict=False)
    tokens = torch.randint(0, shape.vocab_size, (2, 33))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-3, atol=1e-3)
