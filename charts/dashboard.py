"""The Grafana dashboard: what is asked of Prometheus, panel by panel, and its JSON in the chart.

python charts/dashboard.py            writes charts/penstock/files/dashboard.json
python charts/dashboard.py --check    exits with 1 when it differs (tests/charts runs this)

tests/telemetry compares every name and label in these queries with what live routers, workers and operators show, and
docs/picture.py draws this dashboard from a real run.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "penstock" / "files" / "dashboard.json"
UID = "penstock"

SERVING = 'namespace=~"$namespace", serving_penstock_dev_deployment=~"$deployment"'
"""Prometheus knows these labels of a pod from the PodMonitor. "All" is `.*`, which also finds series without them."""


@dataclass(frozen=True)
class Query:
    """One expression in PromQL, and how its lines are called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One graph."""

    title: str
    unit: str
    """As Grafana names it."""
    meaning: str
    queries: tuple[Query, ...]


def rate(metric: str, labels: str = "", by: str = "") -> str:
    """Per second, summed."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{_join(SERVING, labels)}}}[$__rate_interval]))"


def total(metric: str, labels: str = "", by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} ({metric}{{{_join(SERVING, labels)}}})"


def quantiles(metric: str, labels: str = "", names: tuple[str, ...] = ("0.5", "0.95", "0.99")) -> tuple[Query, ...]:
    """Of a histogram."""
    buckets = rate(f"{metric}_bucket", labels, "le")
    return tuple(Query(f"histogram_quantile({name}, {buckets})", f"p{name.removeprefix('0.'):0<2}") for name in names)


def _join(*labels: str) -> str:
    return ", ".join(label for label in labels if label)


ROWS: dict[str, tuple[Panel, ...]] = {
    "What clients see": (
        Panel(
            "Requests",
            "reqps",
            "API requests per second by outcome: an HTTP status, or why the client went.",
            (Query(rate("penstock_router_requests_total", by="status"), "{{status}}"),),
        ),
        Panel(
            "Time to first token",
            "s",
            "From the request's body to its first output token.",
            quantiles("penstock_router_time_to_first_token_seconds"),
        ),
        Panel(
            "Time between tokens",
            "s",
            "As decode workers send them.",
            quantiles("vllm:inter_token_latency_seconds"),
        ),
        Panel(
            "Whole request",
            "s",
            "From the request's body to the end of its answer.",
            quantiles("penstock_router_request_duration_seconds"),
        ),
        Panel(
            "Tokens",
            "short",
            "Per second; cached prompt tokens are those that nobody had to compute.",
            (
                Query(rate("penstock_router_output_tokens_total"), "output"),
                Query(rate("penstock_router_prompt_tokens_total"), "prompt"),
                Query(rate("penstock_router_cached_prompt_tokens_total"), "of it cached"),
            ),
        ),
        Panel(
            "In progress",
            "short",
            "API requests that the routers are answering.",
            (Query(total("penstock_router_running_requests"), "requests"),),
        ),
    ),
    "Waiting and refusing": (
        Panel(
            "Waiting for their turn",
            "short",
            "Prompts that the routers hold back.",
            (Query(total("penstock_router_queued_requests"), "requests"),),
        ),
        Panel(
            "Wait",
            "s",
            "Of those requests that could not be placed at once.",
            quantiles("penstock_router_queue_wait_seconds"),
        ),
        Panel(
            "Refused at once",
            "reqps",
            "They would have waited too long, or their quota is used up; by the code of the error.",
            (Query(rate("penstock_router_refused_requests_total", by="reason"), "{{reason}}"),),
        ),
    ),
    "Placement": (
        Panel(
            "Placements",
            "ops",
            "With a prefill worker, or on the decode worker alone.",
            (Query(rate("penstock_router_placements_total", by="kind"), "{{kind}}"),),
        ),
        Panel(
            "Failed placements",
            "ops",
            "By reason. Clients do not see those that worked out elsewhere.",
            (Query(rate("penstock_router_failed_placements_total", by="reason"), "{{reason}}"),),
        ),
        Panel(
            "Ready workers",
            "short",
            "As the router that sees most of them counts.",
            (Query(f"max by (role) ({total('penstock_router_worker_ready', by='role, instance')})", "{{role}}"),),
        ),
        Panel(
            "Predicted cached tokens",
            "reqps",
            "Requests that found as much in the prefix cache as the router had predicted, or less, or more.",
            (Query(rate("penstock_router_predicted_requests_total", by="outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Error of the predicted time to first token",
            "s",
            "Predicted less measured, without sign.",
            quantiles("penstock_router_ttft_prediction_error_seconds", names=("0.5", "0.95")),
        ),
        Panel(
            "Blocks read from others' caches",
            "ops",
            "Per second, instead of computing them again; and requests whose source was lost, late or had nothing.",
            (
                Query(rate("penstock_sourced_blocks_total"), "blocks"),
                Query(rate("penstock_unsourced_requests_total"), "without success"),
            ),
        ),
        Panel(
            "Redis",
            "short",
            "1 while the Redis that routers share answers all of them. Without it each goes by its own view.",
            (Query(f"min(penstock_router_redis_ready{{{SERVING}}})", "answers"),),
        ),
        Panel(
            "Drift alarm",
            "short",
            "1 while predictions are off and placement goes by load only.",
            (Query(f"max by (of) (penstock_router_drift_alarm{{{SERVING}}})", "{{of}}"),),
        ),
    ),
    "Workers": (
        Panel(
            "Sequences in the batch",
            "short",
            "Summed over the workers of a role.",
            (
                Query(total("vllm:num_requests_running", by="role"), "{{role}} running"),
                Query(total("vllm:num_requests_waiting", by="role"), "{{role}} waiting"),
            ),
        ),
        Panel(
            "Computed tokens",
            "short",
            "Per second: prompt tokens computed, tokens generated.",
            (
                Query(rate("penstock_prefill_tokens_total", by="role"), "{{role}} prompt"),
                Query(rate("vllm:generation_tokens_total", by="role"), "{{role}} generated"),
            ),
        ),
        Panel(
            "KV cache in use",
            "percentunit",
            "Blocks that somebody holds, per worker. Cached blocks that nobody holds count as free.",
            (Query(f"vllm:kv_cache_usage_perc{{{SERVING}}}", "{{pod}}"),),
        ),
    ),
    "Transfer": (
        Panel(
            "KV moved",
            "Bps",
            "Bytes per second that decode workers read from prefill workers.",
            (Query(rate("penstock_pulled_bytes_total"), "read"),),
        ),
        Panel(
            "Speed of one transfer",
            "Bps",
            "Bytes per second of transfer time.",
            (Query(f"{rate('penstock_pulled_bytes_total')} / {rate('penstock_pull_seconds_total')}", "while reading"),),
        ),
        Panel(
            "Reads refused and failed",
            "ops",
            "Refused by the fence as blocks had changed; failed or too late.",
            (
                Query(rate("penstock_fenced_pulls_total"), "refused"),
                Query(rate("penstock_failed_pulls_total"), "failed"),
            ),
        ),
        Panel(
            "Leases and quarantine",
            "short",
            "Prompts held for other workers to read; blocks that a late read may still write to.",
            (
                Query(total("penstock_leased_requests"), "leases"),
                Query(total("penstock_kv_blocks_quarantined"), "quarantined blocks"),
            ),
        ),
    ),
    "Operator": (
        Panel(
            "Looks",
            "s",
            "How long the slowest twentieth of the looks at an LLMDeployment take.",
            (
                Query(
                    "histogram_quantile(0.95, "
                    "sum by (le) (rate(penstock_operator_reconcile_seconds_bucket[$__rate_interval])))",
                    "p95",
                ),
            ),
        ),
        Panel(
            "Failed looks",
            "ops",
            "By error.",
            (
                Query(
                    "sum by (error) (rate(penstock_operator_reconcile_errors_total[$__rate_interval]))",
                    "{{error}}",
                ),
            ),
        ),
        Panel(
            "Waiting LLMDeployments",
            "short",
            "Seen by the leader, and waiting for a look.",
            (
                Query("sum(penstock_operator_deployments)", "seen"),
                Query("sum(penstock_operator_queue_depth)", "waiting"),
            ),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """In Grafana's form."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}, "panels": []})
        top += 1
        for index, panel in enumerate(row):
            place = {"x": 8 * (index % 3), "y": top + 7 * (index // 3), "w": 8, "h": 7}
            panels.append(_panel(panel, place))
        top += 7 * -(-len(row) // 3)
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": UID,
        "title": "Penstock",
        "tags": ["penstock", "llm"],
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": [_source(), *_choices()]},
        "panels": panels,
    }


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 8}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": query.expr, "legendFormat": query.legend}
            for index, query in enumerate(panel.queries)
        ],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"}


def _choices() -> list[dict[str, Any]]:
    labels = {"namespace": "namespace", "deployment": "serving_penstock_dev_deployment"}
    return [
        {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "${source}"},
            "query": f"label_values(penstock_router_worker_ready, {label})",
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }
        for name, label in labels.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the file differs")
    check = parser.parse_args().check
    text = json.dumps(dashboard(), indent=1) + "\n"
    if FILE.exists() and FILE.read_text() == text:
        return 0
    if check:
        print("charts/penstock/files/dashboard.json differs; run: python charts/dashboard.py")
        return 1
    FILE.write_text(text)
    print("written: charts/penstock/files/dashboard.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
