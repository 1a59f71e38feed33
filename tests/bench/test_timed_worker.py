"""The worker without computing: a step takes as long as its work is said to cost, and samples whoever is due."""

import time
from types import SimpleNamespace
from typing import Any

from bench.timed_worker import COST, TOKEN_ID, run_timed
from penstock.router.placement.costs import attention_pairs


def test_a_step_takes_its_time_and_gives_logits_to_whom_nothing_is_pending() -> None:
    runner: Any = SimpleNamespace(decoder=SimpleNamespace(config=SimpleNamespace(vocab_size=400)))
    chunk: Any = SimpleNamespace(num_computed=100, num_pending=500)
    last: Any = SimpleNamespace(num_computed=0, num_pending=50)
    decoding: Any = SimpleNamespace(num_computed=900, num_pending=1)
    began = time.perf_counter()
    logits = run_timed(runner, [(chunk, 200), (last, 50), (decoding, 1)])
    took_s = time.perf_counter() - began
    assert took_s >= COST.seconds(250, attention_pairs(300, 100) + attention_pairs(50), 1, 901) > 0.02
    assert logits.shape == (2, 400)
    assert logits.argmax(1).tolist() == [TOKEN_ID] * 2
