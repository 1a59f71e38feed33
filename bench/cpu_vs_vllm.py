"""Our engine and vLLM on CPU, in turn, in one run: tokens per second and time from start to first token.

    python -m bench.cpu_vs_vllm [--rounds 3] [--peers all|quick]

The model is a random-weight Llama shape of 135 M parameters in bf16. vLLM is measured in every way it can be run here
(in-process `LLM()` and server, 1 and 2 threads, eager and compiled); ours is measured again beside each of them, and
the row shows the way in which vLLM is best. Prompts are random, so no prefix cache helps either.
"""

import argparse
import random
import shutil
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from bench.drivers import Driver, penstock_inprocess
from bench.models import LLAMA_135M, write_model
from bench.report import Report, Row, compare
from bench.vllm import HOW_TO_INSTALL, Peer, fresh_cache, peer_python, start

ALL = [Peer(server, threads, eager) for eager in (True, False) for server in (False, True) for threads in (2, 1)]
QUICK = [Peer(False, 2, eager) for eager in (True, False)]
"""The way in which vLLM was best where this was written (2-core Intel, AMX), and the same compiled."""


@dataclass(frozen=True)
class Work:
    """A batch of prompts; its figure is tokens per second, of the output or of the prompts."""

    what: str
    num_prompts: int
    prompt_tokens: int
    output_tokens: int
    count_prompt: bool
    target: float

    def prompts(self, rng: random.Random) -> list[list[int]]:
        return [
            [rng.randrange(300, LLAMA_135M.vocab) for _ in range(self.prompt_tokens)] for _ in range(self.num_prompts)
        ]

    @property
    def tokens(self) -> int:
        return self.num_prompts * (self.prompt_tokens if self.count_prompt else self.output_tokens)


BATCH = Work("32 sequences, 256 in / 128 out", 32, 256, 128, count_prompt=False, target=1.0)
SINGLE = Work("one sequence, 16 in / 128 out", 1, 16, 128, count_prompt=False, target=1.5)
PREFILL = Work("prefill of 2,048 tokens", 1, 2048, 1, count_prompt=True, target=1.0)
WORKS = (BATCH, SINGLE, PREFILL)


@dataclass
class Measured:
    """Tokens per second of each round, per work, and start times."""

    speeds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    starts_s: list[float] = field(default_factory=list)

    def speed(self, work: Work) -> float:
        return statistics.median(self.speeds[work.what])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds per way of running vLLM (default: 3)")
    parser.add_argument("--peers", choices=("all", "quick"), default="all", help="ways of running vLLM (default: all)")
    arguments = parser.parse_args()
    python = peer_python()
    peers = (ALL if arguments.peers == "all" else QUICK) if python else []
    folder = Path(tempfile.mkdtemp(prefix="bench-model-"))
    model = write_model(LLAMA_135M, folder / LLAMA_135M.name)
    report = Report("cpu_vs_vllm")
    try:
        if python is None:
            print(HOW_TO_INSTALL + "\nMeasuring ours alone.\n")
            ours = measure_alone(model, arguments.rounds)
            report.rows = [compare(work.what, "tokens/s", ours.speed(work)) for work in WORKS]
            report.rows.append(compare("start to first token", "s", min(ours.starts_s)))
            report.notes.append("vLLM was not installed: no ratios")
        else:
            pairs = {peer: measure_pair(peer, python, model, arguments.rounds) for peer in peers}
            report.rows = speed_rows(pairs) + start_rows(pairs)
            report.notes = notes(pairs)
    finally:
        shutil.rmtree(folder)
    report.finish()


def measure_alone(model: Path, rounds: int) -> Measured:
    ours = Measured()
    driver = penstock_inprocess(model)
    ours.starts_s.append(driver.start_s)
    warm_up(driver)
    for number in range(rounds):
        measure_round(driver, ours, number)
    driver.close()
    return ours


def measure_pair(peer: Peer, python: Path, model: Path, rounds: int) -> tuple[Measured, Measured]:
    """Ours and vLLM, started one after the other, then asked in turn."""
    ours, theirs, cache = Measured(), Measured(), fresh_cache()
    our_driver = penstock_inprocess(model)
    their_driver = start(peer, python, model, cache)
    for driver, measured in ((our_driver, ours), (their_driver, theirs)):
        measured.starts_s.append(driver.start_s)
        warm_up(driver)
    for number in range(rounds):
        measure_round(our_driver, ours, number)
        measure_round(their_driver, theirs, number)
    our_driver.close()
    their_driver.close()
    shutil.rmtree(cache, ignore_errors=True)
    for work in WORKS:
        print(
            f"{peer.name}: {work.what}: {ours.speed(work):,.0f} against {theirs.speed(work):,.0f} tokens/s", flush=True
        )
    print(f"{peer.name}: start: {ours.starts_s[0]:.1f} against {theirs.starts_s[0]:.1f} s", flush=True)
    return ours, theirs


def warm_up(driver: Driver) -> None:
    rng = random.Random(0)
    driver.generate(Work("", 4, 64, 4, count_prompt=False, target=0).prompts(rng), 4)


def measure_round(driver: Driver, measured: Measured, number: int) -> None:
    """All works once, with prompts that this driver has not seen."""
    for index, work in enumerate(WORKS):
        prompts = work.prompts(random.Random(1 + 100 * number + index))
        measured.speeds[work.what].append(work.tokens / driver.generate(prompts, work.output_tokens))


def speed_rows(pairs: dict[Peer, tuple[Measured, Measured]]) -> list[Row]:
    rows = []
    for work in WORKS:
        best = max(pairs, key=lambda peer: pairs[peer][1].speed(work))
        ours, theirs = pairs[best]
        rows.append(
            compare(work.what, "tokens/s", ours.speed(work), theirs.speed(work), best.name, target_ratio=work.target)
        )
    return rows


def start_rows(pairs: dict[Peer, tuple[Measured, Measured]]) -> list[Row]:
    """Against vLLM's fastest start of each kind. Compiled starts have an empty cache: the first start on a machine."""
    rows = []
    for eager, target in ((True, 3.0), (False, 10.0)):
        kind = [peer for peer in pairs if peer.eager is eager]
        if not kind:
            continue  # --peers quick
        fastest = min(kind, key=lambda peer: pairs[peer][1].starts_s[0])
        ours, theirs = pairs[fastest]
        rows.append(
            compare(
                f"start to first token, against {'eager' if eager else 'compiled'}",
                "s",
                ours.starts_s[0],
                theirs.starts_s[0],
                fastest.name,
                less_is_better=True,
                target_ratio=target,
            )
        )
    return rows


def notes(pairs: dict[Peer, tuple[Measured, Measured]]) -> list[str]:
    every = [
        f"{peer.name}: "
        + ", ".join(f"{work.what} {theirs.speed(work):,.0f} (ours {ours.speed(work):,.0f})" for work in WORKS)
        + f" tokens/s, start {theirs.starts_s[0]:.1f} (ours {ours.starts_s[0]:.1f}) s"
        for peer, (ours, theirs) in pairs.items()
    ]
    return ["median of the rounds; ours and vLLM took turns", *every]


if __name__ == "__main__":
    main()
