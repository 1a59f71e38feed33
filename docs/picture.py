"""Draws docs/images/dashboard.svg: the chart's dashboard (charts/dashboard.py) as a real run fills it.

python docs/picture.py [--prometheus prometheus] [--seconds 90]

Starts `penstock up` with the demonstration model, puts a load on it, lets a real Prometheus scrape router and workers,
and asks it the dashboard's own queries. What has no data (here: the operator, which needs Kubernetes) is drawn so.
"""

import argparse
import asyncio
import html
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from bench.processes import Tied, free_port, wait_until_healthy  # noqa: E402
from bench.report import commit  # noqa: E402
from charts.dashboard import ROWS, Panel  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "dashboard.svg"
SCRAPE_S, RATE = 1, "6s"
PHASES = (2, 8, 20, 4)
"""Requests in flight, each for a quarter of the time."""
WIDTH, HEIGHT, GAP, COLUMNS = 380, 190, 16, 3
COLOURS = ("#3274d9", "#e0752d", "#56a64b", "#a352cc", "#e02f44", "#8f8f2e")


@dataclass(frozen=True)
class Line:
    """One time series."""

    name: str
    points: Sequence[tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="prometheus", help="the program (default: the one on the PATH)")
    parser.add_argument("--seconds", type=float, default=90, help="how long the load lasts (default: 90)")
    options = parser.parse_args()
    with ExitStack() as stack:
        urls = start_cluster(stack)
        prometheus = start_prometheus(stack, options.prometheus, urls)
        began = time.time()
        asyncio.run(load(urls["router"], options.seconds))
        ended = time.time()
        panels = {
            title: [(panel, ask(prometheus, panel, began, ended)) for panel in row] for title, row in ROWS.items()
        }
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(panels, began, ended))
    print(f"written: {PICTURE.relative_to(ROOT)}")


def start_cluster(stack: ExitStack) -> dict[str, str]:
    """The URLs of the parts, by name."""
    command = [
        sys.executable,
        "-m",
        "penstock.cli",
        "up",
        "--port=0",
        "--prefill=1",
        "--decode=2",
        "--policy=least-work",
    ]
    process = Tied(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    stack.callback(process.stop)
    urls: dict[str, str] = {}
    for line in process.stdout or ():
        if ready := re.search(r"(router|prefill-\d|decode-\d) +ready in \S+ s +(http://\S+)", line):
            urls[ready[1]] = ready[2]
        if "Ctrl-C stops everything" in line:
            return urls
    raise SystemExit("`penstock up` ended")


def start_prometheus(stack: ExitStack, program: str, urls: dict[str, str]) -> str:
    """Its URL. Targets get the labels that the chart's PodMonitor gives them."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="picture-")))
    targets = [
        {
            "targets": [url.removeprefix("http://")],
            "labels": {"namespace": "default", "pod": f"demo-{name}", "serving_penstock_dev_deployment": "demo"},
        }
        for name, url in urls.items()
    ]
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s"},
        "scrape_configs": [{"job_name": "penstock", "static_configs": targets}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML too
    address = f"127.0.0.1:{free_port()}"
    flags = (
        f"config.file={folder}/prometheus.yml",
        f"storage.tsdb.path={folder}/data",
        f"web.listen-address={address}",
    )
    process = Tied([program, *(f"--{flag}" for flag in flags)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.stop)
    wait_until_healthy(process, f"http://{address}/-/ready", 20)
    return f"http://{address}"


async def load(url: str, seconds: float) -> None:
    """Chats of several turns, so that prefixes repeat."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for in_flight in PHASES:
            until = time.monotonic() + seconds / len(PHASES)
            await asyncio.gather(*(chat(session, url, until) for _ in range(in_flight)))


async def chat(session: aiohttp.ClientSession, url: str, until: float) -> None:
    messages: list[dict[str, str]] = []
    while time.monotonic() < until:
        if len(messages) > 6:
            messages.clear()
        messages.append({"role": "user", "content": random.choice(QUESTIONS)})
        body = {"model": "penstock-demo", "messages": messages, "max_tokens": random.randrange(8, 48)}
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            text = (await answer.json())["choices"][0]["message"]["content"] if answer.status == 200 else ""
        messages.append({"role": "assistant", "content": text})


QUESTIONS = (
    "What is the KV cache?",
    "Who computes the prompt, and who generates the answer?",
    "What is a ticket?",
    "Why are prefill and decode kept apart?",
    "What happens when a worker dies?",
)


def ask(prometheus: str, panel: Panel, began: float, ended: float) -> list[Line]:
    """What Prometheus answers to a panel's queries."""
    lines = []
    for query in panel.queries:
        expr = query.expr.replace("$__rate_interval", RATE).replace("$namespace", ".*").replace("$deployment", ".*")
        asked = urllib.parse.urlencode({"query": expr, "start": began, "end": ended, "step": SCRAPE_S})
        with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{asked}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        for series in found:
            name = re.sub(
                r"\{\{(\w+)\}\}", lambda match, labels=series["metric"]: labels.get(match[1], ""), query.legend
            )  # type: ignore[misc]
            points = [(float(at), float(value)) for at, value in series["values"] if value not in ("NaN", "+Inf")]
            if points:
                lines.append(Line(name, points))
    return lines


def draw(rows: dict[str, list[tuple[Panel, list[Line]]]], began: float, ended: float) -> str:
    """The whole picture."""
    parts, top = [], 44
    for title, panels in rows.items():
        parts.append(f'<text class="row" x="{GAP}" y="{top + 14}">{html.escape(title)}</text>')
        top += 24
        for index, (panel, lines) in enumerate(panels):
            left = GAP + index % COLUMNS * (WIDTH + GAP)
            parts.append(f'<g transform="translate({left},{top + index // COLUMNS * (HEIGHT + GAP)})">')
            parts += [*draw_panel(panel, lines, began, ended), "</g>"]
        top += -(-len(panels) // COLUMNS) * (HEIGHT + GAP)
    width = GAP + COLUMNS * (WIDTH + GAP)
    said = (
        f"penstock up, 1 prefill and 2 decode workers, least-work: {', '.join(map(str, PHASES))} requests in flight, "
        f"{ended - began:.0f} s in all; {time.strftime('%Y-%m-%d')}, commit {commit()}"
    )
    style = (
        "text{font:11px sans-serif;fill:#444}.row{font:bold 15px sans-serif}.title{font:bold 12px sans-serif}"
        ".frame{fill:#fff;stroke:#ddd}.grid{stroke:#eee}.line{fill:none;stroke-width:1.4}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + GAP}" width="{width}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#f7f8fa"/>'
        f'<text x="{GAP}" y="26">{html.escape(said)}</text>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def draw_panel(panel: Panel, lines: list[Line], began: float, ended: float) -> list[str]:
    left, right, top, bottom = 66, WIDTH - 10, 30, HEIGHT - 44
    parts = [
        f'<rect class="frame" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="10" y="18">{html.escape(panel.title)}</text>',
    ]
    if not lines:
        return [*parts, f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no data</text>']
    most = max(value for line in lines for _, value in line.points) or 1.0
    for share in (0, 0.5, 1):
        y = bottom - share * (bottom - top)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{shown(share * most, panel.unit)}</text>')
    for index, line in enumerate(lines[: len(COLOURS)]):
        points = " ".join(
            f"{left + (at - began) / (ended - began) * (right - left):.1f},{bottom - value / most * (bottom - top):.1f}"
            for at, value in line.points
        )
        colour = COLOURS[index]
        x, y = 12 + index % 3 * 122, HEIGHT - 24 + index // 3 * 14
        parts.append(f'<polyline class="line" stroke="{colour}" points="{points}"/>')
        parts.append(f'<rect x="{x}" y="{y - 8}" width="8" height="8" fill="{colour}"/>')
        parts.append(f'<text x="{x + 12}" y="{y}">{html.escape(line.name[:20])}</text>')
    return parts


def shown(value: float, unit: str) -> str:
    if unit == "s":
        return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}{'B/s' if unit == 'Bps' else ''}"
    return f"{value:.3g}"


if __name__ == "__main__":
    main()
