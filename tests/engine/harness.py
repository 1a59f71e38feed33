"""Engines on tiny random models, driven step by step, with every logits row recorded."""

import functools
import tempfile
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from penstock.engine.config import EngineConfig
from penstock.engine.engine import Engine
from penstock.engine.kv.layout import KVLayout
from penstock.engine.model import Decoder, load_model
from penstock.engine.runner import Runner
from penstock.engine.sequence import Role, Sequence
from penstock.hashing import BlockHasher
from penstock.protocol import Done, Finished, Frame, GenerateRequest, Sample, SamplingParams, Tokens
from tests.engine.model.tiny import CASES, VOCAB_SIZE, save

GENERATION = "generation-of-this-test"


@functools.cache
def decoder(case: str = "qwen3-tied", dtype: torch.dtype = torch.float32) -> Decoder:
    """The decoder of a tiny checkpoint; stateless, so shared by all engines of a test run."""
    with tempfile.TemporaryDirectory() as folder:
        save(CASES[case], Path(folder))
        model = load_model(folder, dtype)
    model.pack()
    return model


class RecordingRunner(Runner):
    """Keeps the logits that each token was sampled from, under (request id, index of the token within the sequence)."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.logits: dict[tuple[str, int], Tensor] = {}
        self.rows_of: dict[str, int] = {}

    def run(self, work: Seq[tuple[Sequence, int]]) -> Tensor:
        logits = super().run(work)
        sampling = [sequence for sequence, rows in work if rows == sequence.num_pending]
        for sequence, row in zip(sampling, logits, strict=True):
            self.logits[f"{sequence.request.wire.request_id}.{sequence.sample.index}", sequence.num_tokens] = (
                row.clone()
            )
        for sequence, rows in work:
            name = sequence.request.wire.request_id
            self.rows_of[name] = self.rows_of.get(name, 0) + rows
        return logits


def config(**options: object) -> EngineConfig:
    """Poison mode and blocks of 8 tokens, unless `options` say otherwise."""
    return EngineConfig(**{"poison": True, "block_size": 8, "max_step_tokens": 64, **options})  # type: ignore[arg-type]


def make_engine(
    *,
    num_blocks: int = 64,
    case: str = "qwen3-tied",
    dtype: torch.dtype = torch.float32,
    generation: str = GENERATION,
    **options: object,
) -> Engine:
    """An engine in poison mode. `options` are fields of EngineConfig; the block size defaults to 8 tokens here."""
    settings = config(**options)
    model = decoder(case, dtype)
    shape = model.config
    layout = KVLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, settings.block_size, dtype)
    runner = RecordingRunner(model, layout, num_blocks)
    runner.kv.fill_(float("nan"))
    return Engine(settings, runner, lambda salt: BlockHasher(b"secret", salt), generation)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """Pseudo-random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist())


def request(
    name: str,
    tokens: tuple[int, ...],
    *,
    n: int = 1,
    output: tuple[int, ...] = (),
    salt: str = "",
    priority: int = 0,
    seed: int = 7,
    prefill: str | None = None,
    source: str | None = None,
    **sampling: object,
) -> GenerateRequest:
    """A wire request; greedy, 12 tokens, unless `sampling` says otherwise."""
    params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0, **sampling})  # type: ignore[arg-type]
    return GenerateRequest(
        request_id=name,
        prompt=tokens,
        sampling=params,
        samples=tuple(Sample(index, seed + index, output) for index in range(n)),
        salt=salt,
        priority=priority,
        prefill=prefill,
        source=source,
    )


@dataclass
class Answer:
    """What one request's frames came to."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    done: Done | None = None
    others: list[Frame] = field(default_factory=list)


def collect(engine: Engine) -> dict[str, Answer]:
    """Takes the frames out of `engine.outputs`, checking that positions follow each other."""
    answers: dict[str, Answer] = {}
    outputs, engine.outputs = engine.outputs, []
    for output in outputs:
        answer = answers.setdefault(output.request_id, Answer())
        match output.frame:
            case Tokens(sample=sample, position=position, tokens=tokens):
                so_far = answer.tokens.setdefault(sample, [])
                assert not so_far or position == answer_start(answer, sample) + len(so_far)
                if not so_far:
                    answer.others.append(output.frame)
                so_far += tokens
            case Finished(sample, reason):
                answer.reasons[sample] = reason
            case Done():
                answer.done = output.frame
            case frame:
                answer.others.append(frame)
    return answers


def answer_start(answer: Answer, sample: int) -> int:
    """Output position of the first token that a sample emitted."""
    return next(f.position for f in answer.others if isinstance(f, Tokens) and f.sample == sample)


def run(engine: Engine, *requests: GenerateRequest, role: Role = Role.GENERATE) -> dict[str, Answer]:
    """Adds the requests together and steps until nothing is left to compute."""
    for each in requests:
        engine.add(each, role)
    while engine.step():
        pass
    return collect(engine)
