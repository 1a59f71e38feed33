"""`penstock up`: a cluster in the foreground until Ctrl-C."""

import asyncio
import json

from penstock.local.cluster import running
from penstock.local.config import LocalConfig
from penstock.local.foreground import run_foreground
from penstock.local.report import Report, Stopwatch


def run_up(config: LocalConfig) -> int:
    """Runs until SIGINT, SIGTERM or SIGHUP. Raises ConfigError when it cannot start."""
    report = Report()
    return run_foreground(_up(config, report), report)


async def _up(config: LocalConfig, report: Report) -> int:
    engine = config.engine
    parts = f"{config.prefill} prefill, {config.decode} decode, {engine.threads} threads each"
    report.say(f"{engine.model}: {parts}" + (f", {config.routers} routers" if config.routers > 1 else ""))
    watch = Stopwatch()
    async with running(config, report) as cluster:
        urls = ", ".join(f"{router.url}/v1" for router in cluster.routers)
        report.say(f"ready in {watch}: {urls}\n\n{_curl(cluster.url, config)}\n\nCtrl-C stops everything.")
        await asyncio.get_running_loop().create_future()  # until cancelled
    return 0


def _curl(url: str, config: LocalConfig) -> str:
    """A line to paste into another terminal."""
    body = {
        "model": config.served_model_name,
        "stream": True,
        "messages": [{"role": "user", "content": "What is the KV cache?"}],
    }
    key = "-H 'authorization: Bearer YOUR-KEY' " if config.keys else ""
    return f"curl -N {url}/v1/chat/completions {key}-H 'content-type: application/json' -d '{json.dumps(body)}'"
