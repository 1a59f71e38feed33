"""Our processes as benchmarks need them: started by the same commands that a person types, each with its log."""

import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Tied, wait_until_healthy
from penstock.listen import free_port

READY_LIMIT_S = 120.0


@dataclass(frozen=True)
class Process:
    """A started `penstock COMMAND`: its URL, its process id, and the engine's trace where it was asked for."""

    url: str
    pid: int
    trace: Path


@contextmanager
def running(command: str, module: str = "penstock.cli", /, **flags: object) -> Iterator[Process]:
    """Runs `penstock COMMAND` with `flags` on a free port; yields when /ready says 200 and stops it at the end.

    `module` is another program that takes the same words.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        trace = Path(folder) / "trace"
        arguments = {"port": port, **flags} | ({} if command == "router" else {"trace": trace})
        flagged = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
        with (Path(folder) / "log").open("w+") as log:
            process = Tied([sys.executable, "-m", module, command, *flagged], stdout=log, stderr=log)
            try:
                wait_until_healthy(process, f"http://127.0.0.1:{port}/ready", READY_LIMIT_S)
                yield Process(f"http://127.0.0.1:{port}", process.pid, trace)
            except BaseException:
                log.seek(0)
                sys.stderr.write("".join(log.readlines()[-20:]))
                raise
            finally:
                process.stop()


@dataclass(frozen=True)
class Cluster:
    """One router, one prefill and one decode worker."""

    router: Process
    prefill: Process
    decode: Process


@contextmanager
def running_cluster(model: Path, **engine_flags: object) -> Iterator[Cluster]:
    """One worker of each role behind a router; one thread per worker, which on two cores is all there is."""
    flags: dict[str, object] = {"model": model, "secret": "bench", "threads": 1, **engine_flags}
    with ExitStack() as stack:
        prefill = stack.enter_context(running("prefill", **flags))
        decode = stack.enter_context(running("decode", **flags))
        router = stack.enter_context(
            running("router", model=model, prefill=prefill.url, decode=decode.url, policy="least-work")
        )
        yield Cluster(router, prefill, decode)


def info(worker: Process, metric: str) -> Mapping[str, str]:
    """The labels of an info metric, for example the transport in `vllm:cache_config_info`."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"{worker.url}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return next(sample.labels for family in families for sample in family.samples if sample.name == metric)


def first_model(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
        return str(json.load(answer)["data"][0]["id"])
