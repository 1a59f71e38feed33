"""vLLM's `LLM()` behind the driver protocol of bench/drivers.py. Runs in the peer's own venv, imports nothing of ours.

Reads one JSON object per line, `{"prompts": [[token, ...], ...], "max_tokens": n}`, and answers with `{"seconds": s}`.
The first line it writes is `{"ready": true}` after one token was generated: that is the end of its start.
"""

import argparse
import json
import os
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--max-tokens-in-step", type=int, default=4096)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM prints to stdout; only answers may go there

    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(
        model=arguments.model,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=arguments.eager,
        max_model_len=4096,
        max_num_seqs=64,
        max_num_batched_tokens=arguments.max_tokens_in_step,
        enable_prefix_caching=True,
    )

    def generate(prompts: list[list[int]], max_tokens: int) -> float:
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        outputs = llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], sampling, use_tqdm=False)
        seconds = time.perf_counter() - begin
        for output in outputs:
            if len(output.outputs[0].token_ids) != max_tokens:
                raise SystemExit(f"vLLM answered {len(output.outputs[0].token_ids)} tokens instead of {max_tokens}")
        return seconds

    generate([[5, 6, 7, 8]], 1)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps({"seconds": generate(job["prompts"], job["max_tokens"])}), file=answers)


if __name__ == "__main__":
    main()
