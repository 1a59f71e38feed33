"""The start-up check of exact mode: on this machine and build, are logits independent of the batch?

Exact mode promises bitwise equal logits for a token whatever its batch, chunking and prefix hits. Whether matrix
products keep that depends on the processor and on torch's build, so it is measured, not assumed.
"""

import torch
from torch import Tensor

from penstock.engine.runner import Runner
from penstock.engine.sequence import Request, Role, Sequence
from penstock.errors import ModelError
from penstock.hashing import BlockHasher
from penstock.protocol import GenerateRequest, Sample, SamplingParams


def check_exactness(runner: Runner) -> str:
    """Computes one prompt whole, in chunks and beside others, and compares the last logits bitwise.

    Returns the finding as a sentence. Uses the first blocks of the cache and zeroes them again; nothing is in use yet.
    Raises ModelError when the logits are not even finite.
    """
    size = runner.layout.block_size
    length = max(1, min(2 * size + 3, len(runner.kv) * size // 3, runner.decoder.max_context_tokens))
    vocab = runner.decoder.config.vocab_size
    prompt = [(7 * i + 3) % vocab for i in range(length)]
    blocks = list(range(-(-length // size)))
    whole = _logits(runner, prompt, blocks, chunks=[length])
    if not whole.isfinite().all():
        raise ModelError(
            f"the model's logits are not finite in {runner.layout.dtype}: its weights are damaged, or the format is too"
            " narrow for them (try --dtype float32)"
        )
    chunked = _logits(runner, prompt, blocks, chunks=[1, length // 2, length - 1 - length // 2])
    mate = _sequence(runner, prompt[::-1], [block + len(blocks) for block in blocks])
    beside = _logits(runner, prompt, blocks, chunks=[length - 1, 1], mate=mate)
    runner.kv[: 2 * len(blocks)] = 0
    exact = torch.equal(whole, chunked) and torch.equal(whole, beside)
    if exact:
        return "exact mode: logits are bitwise independent of batch and chunking on this machine"
    return "exact mode is NOT available on this machine: logits depend on the batch; outputs may differ in near-ties"


def _logits(
    runner: Runner, prompt: list[int], blocks: list[int], chunks: list[int], mate: Sequence | None = None
) -> Tensor:
    sequence = _sequence(runner, prompt, blocks)
    logits = torch.empty(0)
    for rows in filter(None, chunks):
        work = [(sequence, rows)]
        if mate is not None:
            work.insert(0, (mate, 1))
        logits = runner.run(work)
        sequence.num_computed += rows
        if mate is not None:
            mate.num_computed += 1
    return logits[-1]


def _sequence(runner: Runner, prompt: list[int], blocks: list[int]) -> Sequence:
    wire = GenerateRequest(
        request_id="self-check",
        prompt=tuple(prompt),
        sampling=SamplingParams(max_tokens=1),
        samples=(Sample(0, 0),),
    )
    request = Request.create(wire, Role.GENERATE, BlockHasher(b""), runner.layout.block_size)
    request.sequences[0].blocks = blocks
    return request.sequences[0]
