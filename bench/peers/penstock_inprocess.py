"""Our engine behind the driver protocol of bench/drivers.py: the counterpart of vllm_inprocess.py."""

import argparse
import json
import sys
import time

from penstock.engine.build import build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.engine import Engine
from penstock.protocol import Done, Error, GenerateRequest, Sample, SamplingParams


def generate(engine: Engine, prompts: list[list[int]], max_tokens: int) -> float:
    """Seconds until every prompt has exactly `max_tokens` tokens."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    begin = time.perf_counter()
    for index, prompt in enumerate(prompts):
        request = GenerateRequest(
            request_id=str(index), prompt=tuple(prompt), sampling=sampling, samples=(Sample(index=0, seed=0),)
        )
        engine.add(request)
    num_done = 0
    before = engine.num_generated_tokens
    while num_done < len(prompts):
        engine.step()
        outputs, engine.outputs = engine.outputs, []
        engine.timings.clear()
        for output in outputs:
            if isinstance(output.frame, Error):
                raise SystemExit(output.frame.message)
            num_done += isinstance(output.frame, Done)
    seconds = time.perf_counter() - begin
    generated = engine.num_generated_tokens - before
    if generated != len(prompts) * max_tokens:
        raise SystemExit(f"{generated} tokens instead of {len(prompts) * max_tokens}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--max-step-tokens", type=int, default=2048)
    arguments = parser.parse_args()
    config = EngineConfig(
        model=arguments.model,
        kv_bytes=2**30,
        threads=arguments.threads,
        max_step_tokens=arguments.max_step_tokens,
    )
    engine = build_engine(config, "bench").engine
    generate(engine, [[5, 6, 7, 8]], 1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps({"seconds": generate(engine, job["prompts"], job["max_tokens"])}), flush=True)


if __name__ == "__main__":
    main()
