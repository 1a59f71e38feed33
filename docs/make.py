"""Writes the pages that derive from the code and from bench/results, so that they cannot fall behind.

python docs/make.py            writes docs/reference/command-line.md, docs/reference/metrics.md,
                               docs/reference/kubernetes-api.md, docs/performance.md,
                               the table of comparisons in README.md, the example in docs/how-to/plan-capacity.md
python docs/make.py --check    exits with 1 and names the pages that differ (tests/house runs this)
"""

import argparse
import io
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "bench" / "results"
README = DOCS.parent / "README.md"
MADE = "<!-- made by docs/make.py: do not edit -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page differs")
    check = parser.parse_args().check
    pages = {
        DOCS / "reference" / "command-line.md": command_line(),
        DOCS / "reference" / "metrics.md": metrics(),
        DOCS / "reference" / "kubernetes-api.md": kubernetes_api(),
        DOCS / "performance.md": performance(),
        DOCS / "how-to" / "plan-capacity.md": plan_capacity(),
        README: readme(),
    }
    differing = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    for path in differing:
        if not check:
            path.write_text(pages[path])
        print(f"{'differs' if check else 'written'}: {path.relative_to(DOCS.parent)}")
    if check and differing:
        print("run: python docs/make.py")
    return 1 if check and differing else 0


def command_line() -> str:
    from penstock.cli import COMMANDS
    from penstock.config import Parser

    parts = [
        MADE,
        "# The command line\n",
        "Every flag can also be set in the environment: `--kv-bytes` is `PENSTOCK_FLAG_KV_BYTES`. A flag wins.",
        "A variable of that form that is no command's is refused, with the nearest that is. `penstock up` passes its",
        "environment on, so that `PENSTOCK_FLAG_MAX_WAIT_S=5 penstock up` sets a flag of its routers. Their",
        "`--shutdown-grace-s` is 1 s there unless the environment says otherwise.\n",
        "Sizes take suffixes, as in `512MiB`. What is True or False needs no value to be True: `--log-requests`, or",
        "`--log-requests true`; `--prefix-cache false` turns off what is on.\n",
    ]
    for name, command in COMMANDS.items():
        parser = Parser(prog=f"penstock {name}", environment={})
        command.add_flags(parser)
        parts += [f"## penstock {name}\n", command.sentence + "\n"]
        rows = [_flag_row(action) for action in parser._actions if action.dest != "help"]
        if rows:
            parts += [_table(("flag", "meaning"), rows)]
    return "\n".join(parts)


def _flag_row(action: argparse.Action) -> tuple[str, str]:
    name = action.option_strings[0] if action.option_strings else str(action.metavar)
    choices = f" One of {', '.join(f'`{choice}`' for choice in action.choices)}." if action.choices else ""
    return f"`{name}`", (action.help or "").replace("%%", "%") + choices


def kubernetes_api() -> str:
    from penstock.operator import crds

    parts = [
        MADE,
        "# The Kubernetes API\n",
        "You write an `LLMDeployment`; the operator writes `LLMPools`, which you or an autoscaler may scale.",
        "`kubectl explain llmd.spec` shows the same. [How the operator works](../explanation/operator.md).\n",
    ]
    for crd in crds.crds():
        version = crd["spec"]["versions"][0]
        schema = version["schema"]["openAPIV3Schema"]
        parts += [
            f"## {crd['spec']['names']['kind']}\n",
            f"`{crd['spec']['group']}/{version['name']}`. {schema['description']}\n",
        ]
        for part in ("spec", "status"):
            rows = list(_field_rows(schema["properties"][part], part))
            parts += [f"### {part}\n", _table(("field", "type", "default", "meaning"), rows)]
        rules = list(_rule_rows(schema, ""))
        if rules:
            parts += ["### What is refused\n", _table(("where", "sentence"), rules)]
    return "\n".join(parts)


def _field_rows(schema: dict[str, Any], path: str) -> Iterable[tuple[str, str, str, str]]:
    for name, part in schema.get("properties", {}).items():
        kind = part.get("type", "integer or string")
        limits = "".join(
            f", {word} {part[key]}" for key, word in (("minimum", "at least"), ("maximum", "at most")) if key in part
        )
        choices = (
            "; one of " + ", ".join(f"`{choice or '(empty)'}`" for choice in part["enum"]) if "enum" in part else ""
        )
        default = "" if part.get("default") in (None, "", [], {}) or kind == "object" else f"`{part['default']}`"
        required = " Required." if name in schema.get("required", ()) else ""
        yield f"`{path}.{name}`", kind + limits, default, part.get("description", "") + required + choices
        yield from _field_rows(part, f"{path}.{name}")
        if kind == "array":
            yield from _field_rows(part["items"], f"{path}.{name}[]")


def _rule_rows(schema: dict[str, Any], path: str) -> Iterable[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        where = (path + rule.get("fieldPath", "")).lstrip(".") or "(the object)"
        yield f"`{where}`", rule.get("message") or rule["messageExpression"].partition(".format(")[0].strip("'")
    for name, part in schema.get("properties", {}).items():
        yield from _rule_rows(part, f"{path}.{name}")


def metrics() -> str:
    from penstock.engine.messages import Stats
    from penstock.operator.metrics import Metrics as OperatorMetrics
    from penstock.protocol import Load
    from penstock.router.metrics import Metrics
    from penstock.worker.metrics import WorkerMetrics

    peer = SimpleNamespace(layout=SimpleNamespace(kv_dtype=""), generation="")
    limits = SimpleNamespace(block_size=1, num_blocks=1)
    bridge = SimpleNamespace(
        load=Load(),
        stats=Stats(),
        num_streams=0,
        trouble=lambda: None,
        started=SimpleNamespace(peer=peer, limits=limits, transport=""),
    )
    worker = WorkerMetrics(cast("Any", bridge), "decode", "")
    parts = [
        MADE,
        "# Metrics\n",
        "At `/metrics`, in Prometheus' text format. The `vllm:*` names carry vLLM's meanings, so that endpoint pickers",
        "and dashboards made for vLLM read them unchanged. Every process also has Prometheus' own `process_*`.",
        "[Dashboard, alerts, traces and logs](../how-to/observe.md).\n",
        "## Workers\n",
        _metric_table(worker._registry),
        "## Router\n",
        _metric_table(Metrics().registry),
        "## Operator\n",
        _metric_table(OperatorMetrics().registry),
    ]
    return "\n".join(parts)


UNITS = {
    **{word: word for word in ("seconds", "bytes", "tokens", "blocks", "requests", "streams", "placements", "errors")},
    **dict.fromkeys(("ready", "healthy", "leading", "alarm"), "0 or 1"),
    **dict.fromkeys(("queries", "hits"), "tokens"),
    **dict.fromkeys(("running", "waiting", "preemptions"), "sequences"),
    **dict.fromkeys(("free", "quarantined"), "blocks"),
    "perc": "share, 0 to 1",
    **dict.fromkeys(("info", "odd"), "always 1"),
    "success": "answers",
    "pulls": "reads",
    "timings": "steps",
    "peers": "workers",
    "actions": "changes",
    "calls": "requests",
    "depth": "objects",
    "deployments": "objects",
    "objects": "objects",
    "relists": "lists",
}
"""By the last word of a metric's name."""


def _metric_table(registry: Any) -> str:
    labels = {
        collector._name: collector._labelnames for collector in registry._collector_to_names if _is_plain(collector)
    }
    rows = []
    for family in sorted(registry.collect(), key=lambda family: str(family.name)):
        if family.name.startswith("process_"):
            continue
        word = family.name.rpartition("_")[2]
        if word not in UNITS:
            sys.exit(
                f"the unit of {family.name} is unknown: end its name in one, or add {word!r} to UNITS in docs/make.py"
            )
        of_samples = {name for sample in family.samples for name in sample.labels} - {"le"}
        names = labels.get(family.name, tuple(sorted(of_samples)))
        shown = f"`{family.name}{'_total' if family.type == 'counter' else ''}`"
        rows.append((shown, family.type, UNITS[word], ", ".join(f"`{name}`" for name in names), family.documentation))
    return _table(("name", "kind", "unit", "labels", "meaning"), rows)


def _is_plain(collector: Any) -> bool:
    return hasattr(collector, "_labelnames")


def performance() -> str:
    parts = [
        MADE,
        "# Performance\n",
        "Every figure comes from a command that anyone can run; [how-to/benchmark.md](how-to/benchmark.md) says how.",
        "A ratio above 1 means that Penstock is better; the peer was measured in the same run on the same machine, but",
        "for Grove, of which published figures are shown. In storms (`chaos-...`) the router places by `least-work`,",
        "which hands over every prompt, and in those that end in `-seconds` by its default policy.\n",
    ]
    targets = [row for row in _all_rows(page="") if row[-2]]
    parts += ["## Every target\n", _table(("of", *RESULT_HEADER), targets)]
    for result in _results():
        parts += [
            f"## {result['name']}\n",
            f"`{result['command']}`, {result['date'][:10]}, commit `{result['commit']}`, on {result['machine']}.\n",
            _table(RESULT_HEADER, map(_result_row, result["rows"])),
        ]
        parts += [f"- {note}" for note in result.get("notes", [])] + [""]
    return "\n".join(parts)


def readme() -> str:
    """README.md with the figures beside a peer's that have a target, the bad ones too; of a benchmark without, all."""
    header = ("of", *RESULT_HEADER)
    ratio, target = header.index("ratio"), header.index("target")
    rows = [row for row in _all_rows(page="docs/performance.md") if row[ratio]]
    aimed = {row[0] for row in rows if row[target]}
    table = _table(header[: ratio + 1], (row[: ratio + 1] for row in rows if row[target] or row[0] not in aimed))
    return _with(README, "comparisons", table)


def plan_capacity() -> str:
    """The how-to with what its command prints now."""
    from penstock.cli import main as penstock

    command = "penstock plan examples/trace.jsonl --speed 6 --ttft 2 --tpot 0.03"
    with chdir(DOCS.parent), redirect_stdout(io.StringIO()) as printed:
        penstock(shlex.split(command)[1:])
    return _with(DOCS / "how-to" / "plan-capacity.md", "example", f"```\n$ {command}\n{printed.getvalue()}```\n")


def _with(page: Path, name: str, made: str) -> str:
    """The page with `made` between its marks of that `name`."""
    begin, end = f"<!-- {name}: made by docs/make.py -->\n", f"<!-- end of {name} -->\n"
    before, _, rest = page.read_text().partition(begin)
    return before + begin + made + end + rest.partition(end)[2]


def _results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


RESULT_HEADER = ("what", "unit", "Penstock", "peer", "ratio", "target", "met")


def _all_rows(page: str) -> Iterator[tuple[str, ...]]:
    """Of all results; before each, a link to its benchmark on `page`."""
    for result in _results():
        for row in result["rows"]:
            yield f"[{result['name']}]({page}#{result['name']})", *_result_row(row)


def _result_row(row: dict[str, Any]) -> tuple[str, ...]:
    peer = f"{_figure(row['peer'])} ({row['peer_name']})" if row["peer"] is not None else ""
    ratio = f"{row['ratio']:,.2f}x" if row["ratio"] is not None else ""
    ours = _figure(row["ours"]) if row["ours"] is not None else ""
    met = {True: "yes", False: "**no**", None: ""}[row["met"]]
    return row["what"], row["unit"], ours, peer, ratio, row["target"] or "", met


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
