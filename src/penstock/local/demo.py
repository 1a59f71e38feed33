"""`penstock demo`: starts a cluster, asks the demonstration model, shows which worker did what, and stops."""

import asyncio
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from penstock.demo.text import make_dialogue
from penstock.local.ask import Answer, ask
from penstock.local.cluster import Cluster, running
from penstock.local.config import LocalConfig
from penstock.local.foreground import run_foreground
from penstock.local.report import Report, Stopwatch

QUESTIONS = (
    "Quick question: What is the KV cache?",
    "How much is 27 plus 46?",
    make_dialogue("retrieval", Random(1), held_out=True, num_lines=32).turns[0].question,  # a prompt of many blocks
)


@dataclass(frozen=True)
class Work:
    """What one worker has done so far, from its /metrics."""

    computed: int
    streamed: int
    pulled_blocks: int
    pulled_bytes: int
    transport: str

    def since(self, before: "Work") -> "Work":
        """What it did after `before`."""
        return Work(
            self.computed - before.computed,
            self.streamed - before.streamed,
            self.pulled_blocks - before.pulled_blocks,
            self.pulled_bytes - before.pulled_bytes,
            self.transport,
        )


def run_demo(config: LocalConfig) -> int:
    """Exit status 0 when every question had an answer and KV blocks moved between the workers."""
    report = Report()
    return run_foreground(_demo(config, report), report)


async def _demo(config: LocalConfig, report: Report) -> int:
    watch = Stopwatch()
    report.say(f"starting a router, {config.prefill} prefill and {config.decode} decode workers")
    empty, moved = 0, 0
    async with running(config, report) as cluster:
        report.say(f"ready in {watch}: {cluster.url}/v1\n")
        for question in QUESTIONS:
            answer, blocks = await _ask(cluster, config.served_model_name, question, report)
            empty += not answer.text.strip()
            moved += blocks
    report.say("stopped; nothing is left running")
    faults = find_faults(empty, moved, config.prefill)
    for fault in faults:
        report.say(f"FAILED: {fault}")
    return 1 if faults else 0


def find_faults(num_empty: int, num_moved: int, num_prefill: int) -> list[str]:
    """What went wrong: empty answers, or prefill workers from which no block moved."""
    faults = [f"{num_empty} of {len(QUESTIONS)} answers were empty"] if num_empty else []
    if num_prefill and not num_moved:
        faults.append("no KV block moved from the prefill to the decode worker")
    return faults


async def _ask(cluster: Cluster, model: str, question: str, report: Report) -> tuple[Answer, int]:
    """Asks one question, shows the answer as it comes and who worked on it. Returns also how many blocks moved."""
    before = await asyncio.to_thread(_work_of_all, cluster)
    report.say(f"> {_shorten(question)}")
    messages = [{"role": "user", "content": question}]
    answer = await asyncio.to_thread(
        ask, cluster.url, model, messages, lambda piece: print(piece, end="", flush=True), temperature=0, max_tokens=128
    )
    print()
    after = await asyncio.to_thread(_work_of_all, cluster)
    done = {name: after[name].since(before[name]) for name in after}
    for line in _story(done, cluster, answer.headers):
        report.say(f"    {line}")
    report.say("")
    return answer, sum(work.pulled_blocks for work in done.values())


def _shorten(question: str) -> str:
    """A long question as its first and last line."""
    first, *others = question.split("\n")
    if len(others) < 3:
        return question
    return f"{first}\n  ({len(others) - 1} lines more)\n  {others[-1]}"


def _story(done: Mapping[str, Work], cluster: Cluster, headers: Mapping[str, str]) -> list[str]:
    """Who did what, in the order in which it happened."""
    names = {part.url: part.name for part in cluster.workers}
    prefill, decode = (names.get(headers.get(f"x-penstock-{role}", ""), "") for role in ("prefill", "decode"))
    lines = []
    if prefill:
        lines.append(f"{prefill} computed {done[prefill].computed} prompt tokens")
    if decode:
        work = done[decode]
        if work.pulled_blocks:
            lines.append(f"{work.pulled_blocks} KV blocks, {work.pulled_bytes:,} bytes, moved over {work.transport}")
        also = f"computed {work.computed} prompt tokens and " if work.computed else ""
        lines.append(f"{decode} {also}streamed {work.streamed} tokens")
    return lines


def _work_of_all(cluster: Cluster) -> dict[str, Work]:
    return {part.name: _work_of(part.url) for part in cluster.workers}


def _work_of(url: str) -> Work:
    from prometheus_client.parser import text_string_to_metric_families

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/metrics", timeout=5) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = {sample.name: sample for family in families for sample in family.samples}
    return Work(
        computed=int(samples["penstock_prefill_tokens_total"].value),
        streamed=int(samples["vllm:generation_tokens_total"].value),
        pulled_blocks=int(samples["penstock_pulled_blocks_total"].value),
        pulled_bytes=int(samples["penstock_pulled_bytes_total"].value),
        transport=samples["vllm:cache_config_info"].labels["transport"],
    )
