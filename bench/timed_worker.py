"""A worker whose steps take time but no CPU, as on a device of its own: where what is measured is not the computing.

    python -m bench.timed_worker prefill --model FOLDER [flags of `penstock prefill`]

All else is the real worker: its scheduler, KV blocks, hand-overs, frames and events. Every token of an answer is the
same one.
"""

import time
from collections.abc import Sequence as Seq
from multiprocessing.connection import Connection
from unittest.mock import patch

import torch
from torch import Tensor

from penstock.config import Parser
from penstock.engine.config import EngineConfig
from penstock.engine.engine import step_timing
from penstock.engine.process import run_engine
from penstock.engine.runner import Runner
from penstock.engine.sequence import Sequence
from penstock.router.placement.costs import StepCost
from penstock.worker.config import add_worker_flags, worker_config
from penstock.worker.main import run_worker

TOKEN_ID = 300
COST = StepCost(step_s=2e-3, prefill_token_s=1.1e-4, prefill_pair_s=1e-8, decode_token_s=5e-4, context_token_s=2e-7)
"""Chosen, not fitted: so that bench.fairness finds about the capacity of workers of bench.models.SMALL on two cores."""


def run_timed(runner: Runner, work: Seq[tuple[Sequence, int]]) -> Tensor:
    """As Runner.run."""
    began = time.perf_counter()
    step = step_timing(work, 0.0)
    num_sampling = sum(rows == sequence.num_pending for sequence, rows in work)
    logits = torch.zeros(num_sampling, runner.decoder.config.vocab_size)
    logits[:, TOKEN_ID] = 1.0
    seconds = COST.seconds(step.prefill_tokens, step.prefill_pairs, step.decode_tokens, step.context_tokens)
    time.sleep(max(0.0, seconds - (time.perf_counter() - began)))
    return logits


def run_timed_engine(config: EngineConfig, connection: Connection) -> None:
    """As run_engine."""
    with patch.object(Runner, "run", run_timed):
        run_engine(config, connection)


if __name__ == "__main__":
    parser = Parser()
    parser.add_argument("role", choices=("prefill", "decode"))
    add_worker_flags(parser)
    args = parser.parse_args()
    run_worker(worker_config(args.role, args), engine_main=run_timed_engine)
