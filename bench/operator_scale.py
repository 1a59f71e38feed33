"""The operator with a thousand pods, and with five hundred LLMDeployments.

    python -m bench.operator_scale [--pods 1000] [--deployments 500] [--burst 200]

Needs KUBECONFIG of a cluster with the CRDs (charts/penstock/files/crds.yaml), no operator, and 100 nodes that only
pretend to run pods (kwok, labelled type=kwok and tainted kwok.x-k8s.io/node=fake): `cluster nodes 100` of the shared
cluster script. The operator runs here as a process, with `--verify-transfers false`, since such pods answer nothing.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bench.needs import needs
from bench.report import Report, Row, compare
from penstock.operator import names
from penstock.operator.kinds import LLM_DEPLOYMENT, OWNED, POD

with needs("bench,operator"):
    import psutil

    from bench import kubernetes_alone
    from bench.kubernetes import (
        NAMESPACE,
        PARALLEL,
        check,
        create,
        delete,
        delete_all,
        each,
        nothing_left,
        path,
        until,
    )
    from penstock.operator.client import Client, connect

PORT = 18099
STEADY_S = 30.0
GROVE = "Grove's published scale test, 100 simulated nodes on other machines with other client limits"
ALONE = "Kubernetes alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=1000, help="worker pods of the one large LLMDeployment")
    parser.add_argument("--deployments", type=int, default=500, help="LLMDeployments that are held steady")
    parser.add_argument("--burst", type=int, default=200, help="LLMDeployments created at once")
    arguments = parser.parse_args()
    report = Report("operator_scale")
    report.notes = [
        f"Grove: {GROVE}; no run of it here.",
        f"{ALONE}: the same objects, created by the benchmark itself as fast as the API server takes them, without an"
        " operator, in the same run and before it: about what no operator that makes these objects can beat.",
        "API server, controllers, scheduler, simulated kubelets and this program share the machine with the operator.",
    ]
    asyncio.run(measure(report, arguments))
    report.finish()


async def measure(report: Report, arguments: argparse.Namespace) -> None:
    async with connect(connections=PARALLEL) as client:
        await check(client)
        await delete_all(client)
        peers = await measure_alone(client, arguments)
        with running_operator() as process:
            report.rows += await large(client, arguments.pods, peers["large"])
            report.rows += await burst(client, arguments.burst, peers["burst"])
            report.rows += await steady(client, process, arguments.burst, arguments.deployments)
            report.rows += await deletion(client, arguments.deployments, peers["deletion"])


async def measure_alone(client: Client, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds that Kubernetes needs for the same without an operator."""
    large = await kubernetes_alone.make(client, range(1), arguments.pods // 2)
    await kubernetes_alone.remove(client, 1)
    burst = await kubernetes_alone.make(client, range(arguments.burst), 1)
    await kubernetes_alone.make(client, range(arguments.burst, arguments.deployments), 1)
    return {"large": large, "burst": burst, "deletion": await kubernetes_alone.remove(client, arguments.deployments)}


async def large(client: Client, num_pods: int, alone: float) -> list[Row]:
    """One LLMDeployment with half of its pods in each pool."""
    begin = time.perf_counter()
    await create(client, "large", num_pods // 2)
    created = await until(lambda: count_pods(client, num_pods), begin)
    ready = await until(lambda: is_ready(client, "large", num_pods // 2), begin)
    await delete(client, "large")
    gone = time.perf_counter()
    await until(lambda: nothing_left(client), gone)
    title = f"one LLMDeployment, {num_pods} worker pods"
    said = f"{title}: all ready, and its status says so"
    return [
        compare(f"{title}: pods created", "s", created, 36, "Grove", less_is_better=True, limit=6),
        compare(said, "s", ready, 62, "Grove", less_is_better=True, limit=10),
        compare(said, "s", ready, alone, ALONE, less_is_better=True),
    ]


async def burst(client: Client, num: int, alone: float) -> list[Row]:
    """Many at once."""
    begin = time.perf_counter()
    await each(num, lambda index: create(client, f"d{index}", 1))
    sent = time.perf_counter() - begin
    all_ready = await wait_ready(client, num, begin)
    title = f"{num} LLMDeployments created in a burst"
    return [
        compare(f"{title}: all sent", "s", sent),
        compare(f"{title}: all Ready", "s", all_ready, alone, ALONE, less_is_better=True, limit=15),
    ]


async def steady(client: Client, process: psutil.Process, have: int, num: int) -> list[Row]:
    """What the operator costs when nothing happens, and what a look costs that finds nothing to do."""
    await each(num - have, lambda index: create(client, f"d{have + index}", 1))
    await wait_ready(client, num, time.perf_counter())
    await asyncio.sleep(5)
    writes, cpu_s, begin = count_writes(), cpu_of(process), time.perf_counter()
    await asyncio.sleep(STEADY_S)
    cpu = 100 * (cpu_of(process) - cpu_s) / (time.perf_counter() - begin)
    written = count_writes() - writes
    num_objects = sum([await count(client, kind.path(NAMESPACE)) for kind in OWNED])
    resident = process.memory_info().rss / 1e6
    before, writes = buckets(), count_writes()
    note = {"metadata": {"annotations": {"bench": str(begin)}}}
    for index in range(num):  # one after the other: the API server's own work for it must not be what is measured
        await client.merge(path(f"d{index}"), note, manager="bench")
        await asyncio.sleep(0.02)
    await asyncio.sleep(2)
    looks = buckets() - before
    p99 = quantile(looks, 0.99)
    written += count_writes() - writes
    title = f"{num} LLMDeployments, {num_objects} owned objects, steady"
    return [
        compare(f"{title}: CPU", "% of a core", cpu, limit=1),
        compare(f"{title}: resident memory", "MB", resident, limit=150),
        compare(f"{title}: a look without a change, p99 (upper bound)", "ms", p99 * 1e3, limit=5.0001),
        compare(f"{title}: looks without a change", "looks", looks[float("inf")]),
        compare(f"{title}: API writes meanwhile", "writes", written, limit=1),
    ]


async def deletion(client: Client, num: int, alone: float) -> list[Row]:
    begin = time.perf_counter()
    await each(num, lambda index: delete(client, f"d{index}"))
    gone = await until(lambda: nothing_left(client), begin, within_s=300)
    title = f"{num} LLMDeployments deleted: nothing left"
    return [compare(title, "s", gone, alone, ALONE, less_is_better=True, limit=30)]


async def count(client: Client, collection: str) -> int:
    """How many objects of ours there are: one small page tells."""
    page = await client.get(collection, labelSelector=names.SELECTOR)
    return len(page["items"])


async def count_pods(client: Client, num: int) -> bool:
    """A page of one says how many more there are (not with a selector): the namespace holds nothing else."""
    page = await client.get(POD.path(NAMESPACE), limit=1)
    return int(page["metadata"].get("remainingItemCount", 0)) + len(page["items"]) >= num


async def is_ready(client: Client, name: str, replicas: int) -> bool:
    status = (await client.get(path(name))).get("status", {})
    counts = [status.get(role, {}).get("ready", 0) for role in ("prefill", "decode")]
    return ready_of(status) and counts == [replicas, replicas]


def ready_of(status: dict[str, Any]) -> bool:
    return any(found["type"] == "Ready" and found["status"] == "True" for found in status.get("conditions", ()))


async def wait_ready(client: Client, num: int, begin: float, *, within_s: float = 180) -> float:
    """Seconds from `begin` until so many LLMDeployments were Ready, from a watch: lists would load the API server."""
    ready: set[str] = set()
    async with asyncio.timeout(within_s):
        while len(ready) < num:
            async with client.stream(LLM_DEPLOYMENT.path(NAMESPACE), {"watch": "true"}, within_s) as lines:
                async for line in lines:
                    body = json.loads(line)["object"]
                    if ready_of(body.get("status", {})):
                        ready.add(body["metadata"]["name"])
                    if len(ready) >= num:
                        break
    return time.perf_counter() - begin


@contextlib.contextmanager
def running_operator() -> Iterator[psutil.Process]:
    flags = ["--port", str(PORT), "--host", "127.0.0.1", "--verify-transfers", "false", "--lease-name", "bench"]
    with tempfile.NamedTemporaryFile("w+", prefix="operator-", suffix=".log") as log:
        command = [sys.executable, "-m", "penstock.cli", "operator", *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_leading()
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(20)
            log.seek(0)
            troubles = [line for line in log if " WARNING " in line or " ERROR " in line]
            print("".join(troubles[-10:]), file=sys.stderr)


def wait_leading() -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if any(name == "penstock_operator_leading" and value == 1 for name, value in samples()):
                return
        time.sleep(0.2)
    raise TimeoutError("the operator does not lead")


def samples() -> Iterator[tuple[str, float]]:
    """Metrics of the operator: names with labels, and values."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=5) as response:
        for line in response.read().decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                yield name, float(value)


def count_writes() -> float:
    """Requests that change something, but for the Lease."""
    verbs = ('verb="create"', 'verb="patch"', 'verb="delete"', 'verb="update"')
    return sum(
        value
        for name, value in samples()
        if name.startswith("penstock_operator_api_calls_total{")
        and "leases" not in name
        and any(verb in name for verb in verbs)
    )


def buckets() -> Counter[float]:
    """Looks without a change, by upper bound, cumulative."""
    found: Counter[float] = Counter()
    for name, value in samples():
        if name.startswith("penstock_operator_reconcile_seconds_bucket{") and 'changed="false"' in name:
            found[float(name.partition('le="')[2].partition('"')[0])] = int(value)
    return found


def quantile(looks: Counter[float], part: float) -> float:
    """The upper bound of the bucket in which the quantile lies."""
    total = looks[float("inf")]
    return next(bound for bound in sorted(looks) if looks[bound] >= part * total)


def cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
