"""The documentation names what exists, and the pages that derive from the code are in step with it."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from penstock import errors
from penstock.operator.conditions import TYPES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for _, target in LINK.findall(page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@cache
def definitions(file: Path) -> frozenset[str]:
    """`name` and `Class.name` of everything that `file` defines at its top or in a class."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        name = getattr(node, "name", None)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        if name is not None:
            found.add(name)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_function_that_is_linked_to_is_in_that_file(page: Path) -> None:
    for text, target in LINK.findall(page.read_text()):
        named = re.fullmatch(r"`([\w.]+)`", text)
        if named and target.endswith(".py") and not named[1].endswith(".py"):
            file = (page.parent / target).resolve()
            assert named[1] in definitions(file), f"{target} has no {named[1]}"


def test_the_walk_through_the_code_names_functions_of_every_component() -> None:
    page = (ROOT / "docs/explanation/one-request.md").read_text()
    for folder in ("router", "decode", "prefill", "engine", "kernels", "src/penstock/worker"):
        assert f"](../../{folder}/" in page, folder


NO_REASONS = re.compile(
    r"True|False|Unknown|Running|Unhealthy|Failed\w*|PodScheduled|\w*Available|(Err)?Image\w*|\w*Container\w*Error|Invalid\w*|\w*BackOff"
)
"""Words of the operator's sources that look like reasons: statuses, and what kubelets say."""


def test_the_page_of_troubles_knows_every_reason_of_a_condition() -> None:
    page = (ROOT / "docs/how-to/troubleshoot.md").read_text()
    for name in ("conditions", "problems", "verify", "waiting"):
        words = re.findall(r'"([A-Z][a-z]+[a-zA-Z]*)"', (ROOT / f"operator/{name}.py").read_text())
        reasons = {word for word in words if not NO_REASONS.fullmatch(word)} - set(TYPES)
        assert reasons, name
        assert not {reason for reason in reasons if f"`{reason}`" not in page}, name


def test_pages_that_derive_from_the_code_are_in_step() -> None:
    command = [sys.executable, str(ROOT / "docs" / "make.py"), "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_code_of_a_retryable_error_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text()
    codes = {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RetryableError)
    }
    for code in codes - {"retryable"}:
        assert f"`{code}`" in page, code


def test_every_status_of_a_refusal_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text()
    sources = "\n".join(path.read_text() for path in (ROOT / "router").rglob("*.py"))
    statuses = set(re.findall(r"(?:status=|HTTPException\(|^ +)(4\d\d)\b", sources, re.MULTILINE))
    assert {"401", "405", "408"} <= statuses
    for status in statuses:
        assert re.search(rf"^\|[\d, ]*\b{status}\b", page, re.MULTILINE), status


def test_every_field_of_the_api_is_in_the_reference() -> None:
    from penstock.router.openai.requests import _UNSUPPORTED, ChatRequest, CompletionRequest

    page = (ROOT / "docs/reference/api.md").read_text()
    for kind in (ChatRequest, CompletionRequest):
        for field in kind.__struct_fields__:
            if field in _UNSUPPORTED or field in _HARMLESS:
                continue
            assert re.search(rf"`{field}[`.]", page), field


_HARMLESS = {
    *("user", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    *("parallel_tool_calls", "prediction", "verbosity"),
}
"""Accepted without effect, so not worth a line."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_are_those_of_the_active_environment_on_every_page(page: Path) -> None:
    assert set(re.findall(r"\.venv/bin/\w+", page.read_text())) <= {".venv/bin/activate"}


def test_every_way_in_says_how_to_activate_it() -> None:
    for page in ("README.md", "docs/README.md", "docs/tutorial/first-cluster.md"):
        assert ". .venv/bin/activate" in (ROOT / page).read_text(), page


def test_readme_names_only_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"^make (\w+)", page.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


@pytest.mark.parametrize("result", sorted((ROOT / "bench/results").glob("*.json")), ids=lambda path: path.stem)
def test_a_result_has_the_form_that_design_fixes(result: Path) -> None:
    content = json.loads(result.read_text())
    assert {"name", "date", "commit", "machine", "command", "rows"} <= set(content)
    assert content["name"] == result.stem
    for row in content["rows"]:
        assert set(row) == {"what", "unit", "ours", "peer", "peer_name", "ratio", "target", "met"}
