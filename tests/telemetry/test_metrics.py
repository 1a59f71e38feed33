"""What docs, dashboard and alerts say of metrics is what live routers, workers and operators show, and vice versa."""

import asyncio
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from charts.dashboard import ROWS, SERVING, dashboard
from penstock.listen import free_port
from penstock.local.ask import ask
from penstock.operator.metrics import Metrics as OperatorMetrics
from penstock.operator.server import serving
from tests.local.processes import running_up
from tests.local.tiny_model import write_tiny_model
from tests.telemetry.promql import names_in

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ALERTS = yaml.safe_load((ROOT / "charts/penstock/files/alerts.yaml").read_text())
TARGET_LABELS = {"namespace", "pod", "instance", "container", "job", "endpoint"} | {
    f"serving_penstock_dev_{name}" for name in ("deployment", "role", "revision")
}
"""Prometheus adds these: charts/penstock/templates/podmonitor.yaml."""

SOURCES = "".join(path.read_text() for path in (ROOT / "router").rglob("*.py"))
"""Where label values are written that a good run does not show."""

Live = dict[str, tuple[str, set[str], list[dict[str, str]]]]
"""Metric: (kind, labels of its samples, the samples' labels)."""


def parse(text: str) -> Live:
    live: Live = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("process_") or family.name.endswith("_created"):
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        samples = [sample.labels for sample in family.samples if not sample.name.endswith("_created")]
        live[name] = (family.type, {label for labels in samples for label in labels} - {"le"}, samples)
    return live


def scrape(url: str) -> Live:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        return parse(answer.read().decode())


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Live]]:
    """The metrics of a cluster that has answered something, by part; and an operator's."""
    model = write_tiny_model(tmp_path_factory.mktemp("metrics") / "tiny")
    with running_up(str(model), "--port", "0", "--kv-bytes", "8MiB") as up:
        url = up.wait_ready()
        question = [{"role": "user", "content": "What is the KV cache, and who fills it with keys and values?"}]
        ask(url, "tiny", question, lambda _: None, max_tokens=4)
        workers = re.findall(r"(?:prefill|decode)-0 +ready .*(http://127.0.0.1:\d+)", up.text)
        assert len(workers) == 2
        parts = {"Router": scrape(url), "Workers": scrape(workers[0])}
        other = scrape(workers[1])
        assert set(other) == set(parts["Workers"]), "both roles show the same metrics"
        for name, (kind, labels, samples) in other.items():
            parts["Workers"][name] = (kind, labels | parts["Workers"][name][1], samples + parts["Workers"][name][2])
        yield parts | {"Operator": asyncio.run(scrape_operator())}


async def scrape_operator() -> Live:
    """Of the server that the operator runs, without a cluster to look after."""
    port = free_port()
    async with serving("127.0.0.1", port, OperatorMetrics(), lambda: None):
        return await asyncio.to_thread(scrape, f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def documented() -> dict[str, dict[str, tuple[str, set[str]]]]:
    """By part: metric: (kind, labels)."""
    parts: dict[str, dict[str, tuple[str, set[str]]]] = {}
    for section in (ROOT / "docs/reference/metrics.md").read_text().split("\n## ")[1:]:
        rows = re.findall(r"^\| `([\w:]+)` \| (\w+) \| ([^|]+) \| ([^|]*) \|", section, re.MULTILINE)
        assert all(unit.strip() for _, _, unit, _ in rows)
        parts[section.partition("\n")[0]] = {
            name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, _, labels in rows
        }
    return parts


def test_every_documented_metric_is_live_and_every_live_one_documented(
    live: dict[str, Live], documented: dict[str, dict[str, tuple[str, set[str]]]]
) -> None:
    assert set(documented) == set(live)
    for part, metrics in documented.items():
        assert set(metrics) == set(live[part]), part
        for name, (kind, labels) in metrics.items():
            shown_kind, shown_labels, samples = live[part][name]
            assert kind == shown_kind, name
            assert not samples or labels == shown_labels, name


PANELS = [panel for row in ROWS.values() for panel in row]
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
QUERIES = {f"panel {panel.title}: {query.legend}": query.expr for panel in PANELS for query in panel.queries} | {
    f"alert {rule['alert']}": rule["expr"] for rule in RULES
}
"""All expressions of dashboard and alerts, by where they stand."""


@pytest.mark.parametrize("where", QUERIES)
def test_a_query_asks_for_metrics_and_labels_that_exist(
    where: str, live: dict[str, Live], documented: dict[str, dict[str, tuple[str, set[str]]]]
) -> None:
    shown = {name: found for part in live.values() for name, found in part.items()}
    labels_of = {name: labels for part in documented.values() for name, (_, labels) in part.items()}
    names = names_in(QUERIES[where])
    assert names.selectors
    for selector in names.selectors:
        name = selector.metric.removesuffix("_bucket")
        assert name in shown, selector.metric
        assert (shown[name][0] == "histogram") == selector.metric.endswith("_bucket"), selector.metric
        labels = labels_of[name] | TARGET_LABELS | ({"le"} if selector.metric.endswith("_bucket") else set())
        assert set(selector.matchers) <= labels, selector.metric
        assert names.grouping <= labels, selector.metric
        for label, (operator, value) in selector.matchers.items():
            if operator == "=" and value not in {sample[label] for sample in shown[name][2]}:
                assert f'"{value}"' in SOURCES, f"no {label} is {value!r}"


def test_legends_and_annotations_name_labels_that_the_result_has(
    documented: dict[str, dict[str, tuple[str, set[str]]]],
) -> None:
    labels_of = {name: labels for part in documented.values() for name, (_, labels) in part.items()}
    texts = {f"panel {panel.title}: {query.legend}": query.legend for panel in PANELS for query in panel.queries}
    texts |= {f"alert {rule['alert']}": " ".join(rule["annotations"].values()) for rule in RULES}
    for where, text in texts.items():
        names = names_in(QUERIES[where])
        aggregated = bool(re.search(r"\b(sum|max|min)\b", QUERIES[where]))
        (first, *_) = names.selectors
        has = names.grouping if aggregated else labels_of[first.metric] | TARGET_LABELS
        assert set(re.findall(r"\{\{ *(?:\$labels\.)?(\w+) *\}\}", text)) - {"value"} <= has, where


def test_the_dashboards_variables_fill_the_filters_of_its_panels() -> None:
    names = {variable["name"] for variable in dashboard()["templating"]["list"]}
    assert set(re.findall(r"\$(\w+)", SERVING)) <= names
    for expr in QUERIES.values():
        assert set(re.findall(r"\$(\w+)", expr)) <= names | {"__rate_interval"}


def test_the_dashboard_in_the_chart_is_made_from_the_panels() -> None:
    command = [sys.executable, str(ROOT / "charts" / "dashboard.py"), "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} == set(rule["annotations"])


@pytest.mark.parametrize(
    "expr",
    [
        "sum(rate(x[5m])) + unknown_function(y)",
        "sum(x",
        'x{a="b"} @ 5',
    ],
)
def test_an_expression_that_is_not_understood_is_an_error(expr: str) -> None:
    with pytest.raises(ValueError, match=r"unknown|unbalanced|understood"):
        names_in(expr)
