"""How long a sequence takes from the prefill worker to the decode worker's batch, and what a client sees of it.

    python -m bench.handover [--requests 24] [--shapes 5m,135m]

Inside: from the end of P's last forward to the moment at which D's engine puts the sequence, verified, into the batch
that it launches next. While D is in a step nobody can join, so `minus the wait for D's step` ends when the last block
is verified instead. With one request in flight D has no other step to wait for, and all is counted.

As the client sees it, for Penstock and for vLLM P/D over NIXL: the gap between the first and the second token, minus
the median time between later tokens. vLLM's prefill worker answers with the first token, its decode worker goes on; the
gap is from that answer to the decode worker's first token, the shortest that a proxy in front of both could show.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.cluster import Cluster, info, running_cluster
from bench.models import SHAPES, Shape, write_model
from bench.report import Report, Row, compare, percentile
from bench.vllm import HOW_TO_INSTALL, peer_python
from bench.vllm_pd import VllmPair, ask_vllm, running_vllm_pd
from penstock.hop import new_session, open_hop
from penstock.protocol import Done, Error, GenerateRequest, Sample, SamplingParams, Tokens

BLOCK_SIZE = 16
OUTPUT_TOKENS = 24
PROMPTS = (500, 2000)
IN_FLIGHT = (1, 8)
LIMIT_MS = 10.0
"""The target for the 5 M shape."""
FIRST_PROMPT_ID = 300


@dataclass
class Seen:
    """What the client saw of one request, in seconds of one clock."""

    request_id: str
    times: list[float] = field(default_factory=list)
    done: Done | None = None

    @property
    def gap_s(self) -> float:
        """First-to-second-token gap minus the median time between later tokens."""
        gaps = [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]
        return gaps[0] - statistics.median(gaps[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=24, help="requests per line of the table (default: 24)")
    parser.add_argument("--shapes", default="5m,135m", help="model shapes, separated by commas (default: 5m,135m)")
    arguments = parser.parse_args()
    report = Report("handover")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in arguments.shapes.split(","):
            shape = SHAPES[name]
            model = write_model(shape, Path(folder) / name)
            with running_cluster(model, kv_bytes="512MiB") as cluster:
                transport = info(cluster.decode, "vllm:cache_config_info")["transport"]
                report.notes.append(f"{shape.name}: one thread per worker, transport {transport}")
                for prompt_tokens in PROMPTS:
                    for in_flight in IN_FLIGHT:
                        report.rows += measure(cluster, shape, prompt_tokens, in_flight, arguments.requests)
                        print(f"{name}, {prompt_tokens} tokens, {in_flight} in flight: done", flush=True)
        report.rows += client_rows(Path(folder), arguments.shapes.split(","), arguments.requests, report)
    report.finish()


def measure(cluster: Cluster, shape: Shape, prompt_tokens: int, in_flight: int, requests: int) -> list[Row]:
    """Requests in waves of `in_flight`, and the rows that their traces make."""
    what = f"{shape.name}, {prompt_tokens} tokens, {in_flight} in flight"
    begin_ns = time.monotonic_ns()
    waves = max(3, requests // in_flight)
    seen = asyncio.run(ask_ours(cluster, shape, prompt_tokens, in_flight, waves + 1))[in_flight:]
    handovers = read_traces(cluster, begin_ns)[-len(seen) :]
    num_blocks = -(-prompt_tokens // BLOCK_SIZE)
    num_bytes = num_blocks * BLOCK_SIZE * shape.kv_bytes_per_token()
    for each in seen:
        assert each.done is not None
        if each.done.pulled_bytes != num_bytes:
            raise SystemExit(f"{what}: {each.done.pulled_bytes} bytes moved instead of {num_bytes}")
    whole_ms = [1e-6 * (each.joined - each.prefilled) for each in handovers]
    ready_ms = [1e-6 * (each.verified - each.prefilled) for each in handovers] if in_flight > 1 else whole_ms
    limit = LIMIT_MS if shape.name == "5m" else None
    p50 = percentile(ready_ms, 50)
    return [
        compare(f"{what}: handover p50, minus the wait for D's step", "ms", p50, limit=limit),
        compare(f"{what}: handover p95, minus the wait for D's step", "ms", percentile(ready_ms, 95)),
        compare(f"{what}: handover p50, the wait included", "ms", percentile(whole_ms, 50)),
        compare(f"{what}: moved per request", "MB", num_bytes / 1e6),
        compare(f"{what}: bytes moved / handover p50", "GB/s", num_bytes / 1e6 / p50),
    ]


@dataclass(frozen=True)
class Handover:
    """CLOCK_MONOTONIC in ns of one request's way."""

    prefilled: int
    verified: int
    joined: int


def read_traces(cluster: Cluster, begin_ns: int) -> list[Handover]:
    """The handovers since `begin_ns` in the order of their joining.

    Each worker names requests by ids of its own, which begin with the caller's id.
    """
    events: dict[str, dict[str, int]] = defaultdict(dict)
    for trace in (cluster.prefill.trace, cluster.decode.trace):
        for line in trace.read_text().splitlines():
            at, event, request = line.split()
            if int(at) >= begin_ns:
                caller = request.split("/")[0].split("#")[0]
                events[caller][event] = max(int(at), events[caller].get(event, 0))
    found = [Handover(each["prefilled"], each["verified"], each["joined"]) for each in events.values()]
    return sorted(found, key=lambda each: each.joined)


def random_prompt(rng: random.Random, shape: Shape, num_tokens: int) -> tuple[int, ...]:
    return tuple(rng.randrange(FIRST_PROMPT_ID, shape.vocab) for _ in range(num_tokens))


async def ask_ours(
    cluster: Cluster,
    shape: Shape,
    prompt_tokens: int,
    in_flight: int,
    waves: int,
    output_tokens: int = OUTPUT_TOKENS,
) -> list[Seen]:
    """Waves of requests that P computes and D answers; prompts are random, so no prefix is cached."""
    rng = random.Random()
    seen: list[Seen] = []
    async with new_session() as session:
        for wave in range(waves):
            requests = [
                GenerateRequest(
                    request_id=f"handover-{time.monotonic_ns()}-{wave}-{index}",
                    prompt=random_prompt(rng, shape, prompt_tokens),
                    sampling=SamplingParams(max_tokens=output_tokens, temperature=0, ignore_eos=True),
                    samples=(Sample(index=0, seed=0),),
                    prefill=cluster.prefill.url,
                )
                for index in range(in_flight)
            ]
            url = f"{cluster.decode.url}/generate"
            seen += await asyncio.gather(*(_ask_one(session, url, request) for request in requests))
    return seen


async def _ask_one(session: aiohttp.ClientSession, url: str, request: GenerateRequest) -> Seen:
    seen = Seen(request.request_id)
    async with open_hop(session, url, request) as hop:
        async for frame in hop.frames():
            if isinstance(frame, Tokens):
                seen.times += [time.perf_counter()] * len(frame.tokens)
            elif isinstance(frame, Error):
                raise SystemExit(f"a request failed: {frame.message}")
            elif isinstance(frame, Done):
                seen.done = frame
                break
    return seen


def ask_peer(vllm: VllmPair, shape: Shape, prompt_tokens: int) -> Seen:
    prompt = random_prompt(random.Random(), shape, prompt_tokens)
    return Seen("vllm", asyncio.run(ask_vllm(vllm, prompt, OUTPUT_TOKENS)))


def client_rows(folder: Path, shapes: list[str], requests: int, report: Report) -> list[Row]:
    """The first-to-second-token gap of both systems, one request in flight.

    One system runs after the other: vLLM's idle workers would take the cores from ours.
    """
    python = peer_python()
    if python is None:
        print(HOW_TO_INSTALL + "\nMeasuring ours alone.\n")
    rows = []
    for name in shapes:
        shape, model = SHAPES[name], folder / name
        theirs: dict[int, list[Seen]] = {}
        with running_cluster(model, kv_bytes="512MiB") as cluster:
            ours = {tokens: asyncio.run(ask_ours(cluster, shape, tokens, 1, requests)) for tokens in PROMPTS}
        print(f"{name}: our client side done", flush=True)
        if python is not None:
            with running_vllm_pd(python, model) as vllm:
                for tokens in PROMPTS:
                    theirs[tokens] = [ask_peer(vllm, shape, tokens) for _ in range(requests)]
        for prompt_tokens in PROMPTS:
            gap_ms = 1e3 * statistics.median(each.gap_s for each in ours[prompt_tokens][1:])
            what = f"{name}, {prompt_tokens} tokens: first-to-second-token gap minus the median gap, p50"
            if python is None:
                rows.append(compare(what, "ms", gap_ms))
                continue
            # Tokens that vLLM's server sent in one piece have no gaps between them.
            gaps_s = [each.gap_s for each in theirs[prompt_tokens][1:] if len(each.times) > 2]
            if not gaps_s:
                rows.append(compare(what, "ms", gap_ms))
                report.notes.append(f"{name}, {prompt_tokens} tokens: vLLM sent all tokens after the first at once")
                continue
            peer_ms = 1e3 * statistics.median(gaps_s)
            rows.append(compare(what, "ms", gap_ms, peer_ms, "vllm P/D over NIXL, eager", less_is_better=True))
    if python is None:
        report.notes.append("vLLM was not installed: no ratios")
    return rows


if __name__ == "__main__":
    main()
