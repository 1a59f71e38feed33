"""Runs in the Python that PENSTOCK_BENCH_DYNAMO names: one trace through Dynamo's own offline replay.

    dynamo_replay.py TRACE SPEED PREFILL DECODE ROUTER BLOCKS REPORT

Writes one JSON line per request to REPORT (`ttft_ms`, `reused_input_tokens`, ...).
"""

import sys

from dynamo.mocker import MockEngineArgs
from dynamo.replay import run_trace_replay

trace, speed, prefill, decode, router, blocks, report = sys.argv[1:]
sizes = {
    "block_size": 512,
    "num_gpu_blocks": int(blocks),
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
}
run_trace_replay(
    trace,
    prefill_engine_args=MockEngineArgs(worker_type="prefill", **sizes),
    decode_engine_args=MockEngineArgs(worker_type="decode", **sizes),
    num_prefill_workers=int(prefill),
    num_decode_workers=int(decode),
    router_mode=router,
    arrival_speedup_ratio=float(speed),
    trace_block_size=512,
    report_jsonl_path=report,
)
