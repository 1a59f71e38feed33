"""`penstock status NAME`: pools, revisions, cache hits, transfers and the last problems, in one screen."""

import asyncio
import re
from collections import Counter
from typing import Any

from penstock.errors import ConfigError
from penstock.operator import api, names
from penstock.operator.client import ApiError, ApiUnavailable, Client, connect
from penstock.operator.commands.config import StatusConfig
from penstock.operator.kinds import EVENT, LLM_DEPLOYMENT, LLM_POOL, POD
from penstock.operator.store import read_deployment

_METRICS_S = 5.0
_WANTED = {
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "penstock_pulled_blocks_total",
    "penstock_pulled_bytes_total",
    "penstock_pull_seconds_total",
    "penstock_failed_pulls_total",
    "vllm:num_requests_running",
}


def run_status(config: StatusConfig) -> int:
    """Prints the screen. Exit status 0 when it is ready. Raises ConfigError when there is no such deployment."""
    return asyncio.run(_status(config))


async def _status(config: StatusConfig) -> int:
    async with connect() as client:
        try:
            body = await client.get(LLM_DEPLOYMENT.path(config.namespace, config.name))
            query = {"labelSelector": f"{names.DEPLOYMENT}={config.name}"}
            pools = await client.get(LLM_POOL.path(config.namespace), **query)
            pods = await client.get(POD.path(config.namespace), **query)
            about = {"fieldSelector": f"involvedObject.kind=LLMDeployment,involvedObject.name={config.name}"}
            events = await client.get(EVENT.path(config.namespace), **about)
        except ApiError as error:
            if error.status == 404:
                raise ConfigError(f"there is no LLMDeployment {config.name} in namespace {config.namespace}") from error
            raise
        workers = [pod for pod in pods["items"] if pod["metadata"]["labels"].get(names.REVISION)]
        metrics = await asyncio.gather(*(_metrics(client, pod) for pod in workers))
    status = read_deployment(body).status
    print("\n".join(screen(config, status, pools["items"], workers, list(metrics), events["items"])))
    return 0 if _of(status, "Ready") == "True" else 1


def screen(
    config: StatusConfig,
    status: api.Status,
    pools: list[dict[str, Any]],
    workers: list[dict[str, Any]],
    metrics: list[Counter[str] | None],
    events: list[dict[str, Any]],
) -> list[str]:
    """The lines. Pure."""
    lines = [
        f"{config.namespace}/{config.name}: {_headline(status)}",
        f"  model     {status.model}    {status.url}",
        f"  revision  {status.revision or '-'}{f' -> {status.next_revision}' if status.next_revision else ''}",
        "",
        f"  {'pool':<9}{'ready':>7}  {'revisions'}",
    ]
    for role in api.ROLES:
        count: api.PoolCount = getattr(status, role)
        revisions = Counter(
            pod["metadata"]["labels"][names.REVISION]
            for pod in workers
            if pod["metadata"]["labels"].get(names.ROLE) == role
        )
        said = ", ".join(f"{number} x {revision}" for revision, number in sorted(revisions.items()))
        scaled = next((pool["spec"]["replicas"] for pool in pools if pool["spec"]["role"] == role), count.replicas)
        note = f"  (pool says {scaled})" if scaled != count.replicas else ""
        lines.append(f"  {role:<9}{count.summary:>7}  {said}{note}")
    lines += ["", *_traffic(metrics), ""]
    for condition in status.conditions:
        lines.append(f"  {condition.type:<21}{condition.status:<9}{condition.reason}: {condition.message}"[:160])
    warnings = [event for event in events if event.get("type") == "Warning"]
    warnings.sort(key=lambda event: event.get("lastTimestamp") or "")
    if warnings:
        lines += ["", "  last problems"]
        lines += [f"    {event.get('lastTimestamp')}  {event.get('message')}"[:160] for event in warnings[-5:]]
    return lines


def _headline(status: api.Status) -> str:
    ready = next((condition for condition in status.conditions if condition.type == "Ready"), None)
    if ready is None:
        return "nothing known: is the operator running? (`penstock doctor`)"
    word = {"True": "ready", "False": "NOT READY"}.get(ready.status, "starting")
    return f"{word} ({ready.reason}: {ready.message})"


def _of(status: api.Status, kind: str) -> str:
    return next((condition.status for condition in status.conditions if condition.type == kind), "Unknown")


def _traffic(metrics: list[Counter[str] | None]) -> list[str]:
    known = [found for found in metrics if found is not None]
    if not known:
        return ["  no worker's metrics can be read"]
    total: Counter[str] = sum(known, Counter())
    looked_up, hits = total["vllm:prefix_cache_queries_total"], total["vllm:prefix_cache_hits_total"]
    blocks, seconds = total["penstock_pulled_blocks_total"], total["penstock_pull_seconds_total"]
    rate = total["penstock_pulled_bytes_total"] / seconds / 1e6 if seconds else 0
    silent = f" ({len(metrics) - len(known)} workers silent)" if len(known) < len(metrics) else ""
    return [
        f"  requests  {total['vllm:num_requests_running']:.0f} running{silent}",
        f"  cache     {100 * hits / looked_up if looked_up else 0:.0f} % of {looked_up:.0f} prompt tokens found",
        f"  transfers {blocks:.0f} blocks, {rate:.0f} MB/s, {total['penstock_failed_pulls_total']:.0f} failed",
    ]


async def _metrics(client: Client, pod: dict[str, Any]) -> Counter[str] | None:
    """A worker's counters through the API server; None when it does not answer."""
    metadata = pod["metadata"]
    path = f"{POD.path(metadata['namespace'])}/{metadata['name']}:{names.WORKER_PORT}/proxy/metrics"
    try:
        async with asyncio.timeout(_METRICS_S):
            return parse_metrics((await client.text(path)).splitlines())
    except (ApiError, ApiUnavailable, TimeoutError):
        return None


def parse_metrics(lines: list[str]) -> Counter[str]:
    """The metrics that are shown, summed over their labels."""
    found: Counter[str] = Counter()
    for line in lines:
        match = re.match(r"([\w:]+)(?:\{.*\})? (\S+)", line)
        if match and match[1] in _WANTED:
            found[match[1]] += float(match[2])  # type: ignore[assignment]
    return found
