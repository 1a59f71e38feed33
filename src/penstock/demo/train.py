"""Trains the demonstration model from scratch on a CPU, in the time given, and writes its model folder.

    python -m penstock.demo.train --minutes 75

The schedule follows the clock, not the steps, so that a busy machine trains less but still finishes: constant
learning rate, then a linear decay ("WSD", Hu et al. 2024, MiniCPM, section 4). Rows grow from 256 to 4,352 tokens.
A checkpoint is written every few minutes; starting again with the same `--work` folder goes on from it.
"""

import argparse
import ctypes
import json
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from penstock.demo import MODEL_FOLDER
from penstock.demo.network import Decoder, DecoderShape
from penstock.demo.rows import RowMaker
from penstock.demo.text import SKILLS, make_dialogue
from penstock.demo.tokenizer import END, MAX_TOKENS, PAD, render, save_tokenizer, train_tokenizer

# (share of the time from which it holds, {tokens per row: share of the steps})
STAGES: tuple[tuple[float, dict[int, float]], ...] = (
    (0.0, {256: 1.0}),
    (0.2, {256: 0.5, 512: 0.3, 1280: 0.2}),
    (0.5, {256: 0.4, 512: 0.1, 1280: 0.4, 4352: 0.1}),
)


@dataclass(frozen=True)
class TrainConfig:
    """Flags of the command line, with their defaults."""

    minutes: float = field(default=75.0, metadata={"help": "time to train, resumed time included"})
    learning_rate: float = field(default=2e-3, metadata={"help": "before the decay; for matrices (Muon) and the rest"})
    decay_share: float = field(default=0.2, metadata={"help": "last share of the time, in which the rate falls to 0"})
    tokens_per_step: int = field(default=4096, metadata={"help": "tokens that one update averages over"})
    average: float = field(default=0.99, metadata={"help": "decay of the running average of the weights, per step"})
    checkpoint_minutes: float = field(default=6.0, metadata={"help": "time between checkpoints"})
    threads: int = field(default=2, metadata={"help": "CPU threads"})
    seed: int = field(default=0, metadata={"help": "of the text and of the first weights"})
    tokenizer: str = field(
        default=str(MODEL_FOLDER / "tokenizer.json"), metadata={"help": "tokenizer to keep; trained if there is none"}
    )
    work: str = field(default="build/demo", metadata={"help": "folder for the checkpoint and the interim model"})
    output: str = field(default=str(MODEL_FOLDER), metadata={"help": "model folder to write when the time is up"})


class Trainer:
    """The model, its optimisers and its clock: all that a checkpoint must hold."""

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        saved = Path(config.tokenizer)
        self.tokenizer = Tokenizer.from_file(str(saved)) if saved.exists() else train_tokenizer()
        self.model = Decoder(DecoderShape(vocab_size=self.tokenizer.get_vocab_size()))
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.dim() != 2 or "embed" in n]
        # Muon (Jordan 2024) at AdamW's step size, as in "Muon is scalable for LLM training" (Liu et al. 2025).
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.loss = torch.compile(self.model.loss, dynamic=False)
        self.step, self.tokens, self.elapsed_s = 0, 0, 0.0

    @property
    def progress(self) -> float:
        return self.elapsed_s / (60 * self.config.minutes)

    def update(self, tokens: Tensor, weights: Tensor) -> float:
        """One optimiser step; returns the loss."""
        left = max(0.0, 1.0 - self.progress) / self.config.decay_share
        warmup = (self.step + 1) / 100
        rate = self.config.learning_rate * min(1.0, left, warmup)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.loss(tokens, weights)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        names = list(self.average)
        state = self.model.state_dict()
        decay = min(self.config.average, self.step / (self.step + 10))
        torch._foreach_lerp_([self.average[n] for n in names], [state[n] for n in names], 1 - decay)
        self.step, self.tokens = self.step + 1, self.tokens + tokens[:, 1:].numel()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "clock": (self.step, self.tokens, self.elapsed_s),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.elapsed_s = state["clock"]

    def export(self, folder: Path) -> None:
        """Write the averaged weights as a Hugging Face model folder, in bf16."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {f"model.{name}": value.to(torch.bfloat16).contiguous() for name, value in self.average.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        save_tokenizer(self.tokenizer, folder)
        ids = {"eos_token_id": self.tokenizer.token_to_id(END), "pad_token_id": self.tokenizer.token_to_id(PAD)}
        write_json(folder / "config.json", hugging_face_config(self.model.shape) | ids)
        write_json(folder / "generation_config.json", {"do_sample": False, "max_new_tokens": 256} | ids)


def hugging_face_config(shape: DecoderShape) -> dict[str, Any]:
    """`config.json` of `Qwen3ForCausalLM` for this shape."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


@torch.no_grad()
def probe(trainer: Trainer, num_prompts: int = 15, num_lines: int = 16) -> dict[str, float]:
    """Share of held-out prompts whose whole answer is the model's first choice, token by token: greedy decoding's score
    in one forward pass each."""
    rng = Random(1)
    model = Decoder(trainer.model.shape)
    model.load_state_dict(trainer.average)
    scores = {}
    for skill in (*SKILLS, "retrieval 1k"):
        right = 0
        for _ in range(num_prompts):
            lines = 76 if skill == "retrieval 1k" else num_lines
            pieces = render(make_dialogue(skill.split()[0], rng, held_out=True, num_lines=lines))
            ids = [trainer.tokenizer.encode(text).ids for text, _ in pieces]
            learned = torch.tensor([learn for (_, learn), part in zip(pieces, ids, strict=True) for _ in part])
            tokens = torch.tensor([token for part in ids for token in part])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                choices = model(tokens[None, :-1])[0].argmax(-1)
            right += bool((choices == tokens[1:])[learned[1:]].all())
        scores[skill] = round(right / num_prompts, 2)
    return scores


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks: handing them back to the kernel each step made training six times slower."""
    libc = ctypes.CDLL(None)
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**28)
    libc.mallopt(mmap_max, 0)


def rows_for(progress: float, rng: Random) -> int:
    """Tokens per row for the next step."""
    lengths = [mix for start, mix in STAGES if progress >= start][-1]
    return rng.choices(list(lengths), list(lengths.values()))[0]


def train(config: TrainConfig) -> None:
    """Train until the time is up, then write the model folder. SIGTERM writes a checkpoint and stops."""
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; start again to go on"))
    trainer, checkpoint = Trainer(config), Path(config.work) / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        trainer.load(torch.load(checkpoint))
    try:
        run_out_the_clock(trainer, checkpoint)
    finally:
        torch.save(trainer.state(), checkpoint)
    trainer.export(Path(config.output))
    print(f"{trainer.elapsed_s:.0f} s, {trainer.tokens} tokens, held out: {probe(trainer)}", flush=True)


def run_out_the_clock(trainer: Trainer, checkpoint: Path) -> None:
    """Update after update, with a line of progress, a checkpoint and an interim model every few of them."""
    config = trainer.config
    maker, rng = RowMaker(trainer.tokenizer, config.seed + trainer.step), Random(config.seed + trainer.step)
    started_s, saved_s = time.monotonic() - trainer.elapsed_s, trainer.elapsed_s
    while trainer.progress < 1.0:
        num_tokens = rows_for(trainer.progress, rng)
        loss = trainer.update(*maker.batch(max(1, config.tokens_per_step // num_tokens), num_tokens))
        trainer.elapsed_s = time.monotonic() - started_s
        if trainer.step % 25 == 0:
            print(
                f"{trainer.elapsed_s:.0f} s, step {trainer.step}, {trainer.tokens} tokens, loss {loss:.4f}", flush=True
            )
        if trainer.elapsed_s - saved_s > 60 * config.checkpoint_minutes:
            saved_s = trainer.elapsed_s
            torch.save(trainer.state(), checkpoint)
            trainer.export(checkpoint.parent / "model")
            print(f"{trainer.elapsed_s:.0f} s, held out: {probe(trainer)}", flush=True)


def parse(arguments: list[str] | None = None) -> TrainConfig:
    parser = argparse.ArgumentParser(prog="python -m penstock.demo.train", description=__doc__)
    for name, entry in TrainConfig.__dataclass_fields__.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(entry.default), default=entry.default, help=entry.metadata["help"])
    return TrainConfig(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    train(parse())
