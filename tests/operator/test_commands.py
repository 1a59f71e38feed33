"""`penstock render` and the screen of `penstock status`, without a cluster (tests/cluster runs them with one)."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.cli import main
from penstock.operator.api import API_VERSION
from penstock.operator.commands.config import StatusConfig
from penstock.operator.commands.status import parse_metrics, screen
from tests.operator.world import World

ROOT = Path(__file__).parents[2]


def document(**spec: Any) -> str:
    body = {"apiVersion": API_VERSION, "kind": "LLMDeployment", "metadata": {"name": "demo"}}
    return yaml.safe_dump(body | {"spec": {"model": {"uri": "file:///models/penstock-demo"}} | spec})


def render(tmp_path: Path, text: str, *flags: str) -> int:
    file = tmp_path / "demo.yaml"
    file.write_text(text)
    return main(["render", str(file), *flags])


def test_render_prints_all_that_is_created_until_it_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = document(prefill={"replicas": 2}, decode={"replicas": 2})
    assert render(tmp_path, text, "--namespace", "llms", "--router-image", "r:7") == 0
    manifests = list(yaml.safe_load_all(capsys.readouterr().out))
    world = World()
    world.settle()
    assert len(manifests) == len(world.objects) + 1  # and the Secret
    assert {manifest["metadata"]["namespace"] for manifest in manifests} == {"llms"}
    assert all("ownerReferences" not in manifest["metadata"] for manifest in manifests)
    router = next(m for m in manifests if m["kind"] == "Deployment" and m["metadata"]["name"] == "demo-router")
    assert router["spec"]["template"]["spec"]["containers"][0]["image"] == "r:7"


def test_render_of_every_example_works(capsys: pytest.CaptureFixture[str]) -> None:
    for file in sorted((ROOT / "examples").glob("*.yaml")):
        if "kind: LLMDeployment" in file.read_text():
            assert main(["render", str(file)]) == 0, file
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (document(prefil={}), "there is no field spec.prefil; did you mean prefill?"),
        (document(prefill={"gpu": 1}), "there is no field spec.prefill.gpu; did you mean gpus?"),
        (document(prefill={"gpus": "many"}), "Expected `int`, got `str` - at `spec.prefill.gpus`"),
        (document(model={"uri": "hf://only-a-name"}), "names no repository"),
        ("kind: Pod\n", "holds no LLMDeployment"),
        ("{", "is not YAML"),
        (document().replace("v1alpha1", "v9"), "apiVersion is 'serving.penstock.dev/v9'"),
    ],
)
def test_render_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    assert render(tmp_path, text) == 2
    assert sentence in capsys.readouterr().err


def test_the_status_screen_shows_pools_traffic_conditions_and_problems() -> None:
    world = World()
    world.settle()
    revision = world.status.revision
    labels = {"serving.penstock.dev/role": "prefill", "serving.penstock.dev/revision": revision}
    counters = Counter(
        {
            "vllm:prefix_cache_queries_total": 200,
            "vllm:prefix_cache_hits_total": 50,
            "penstock_pulled_blocks_total": 12,
            "penstock_pulled_bytes_total": 3_000_000,
            "penstock_pull_seconds_total": 1,
        }
    )
    event = {"type": "Warning", "lastTimestamp": "2026-11-21T03:00:00Z", "message": "Ready is False: no node fits"}
    lines = screen(
        StatusConfig(name="demo"),
        world.status,
        world.of_kind("LLMPool"),
        [{"metadata": {"labels": labels}}] * 2,
        [counters, None],
        [event, event | {"type": "Normal", "message": "not a problem"}],
    )
    text = "\n".join(lines)
    assert lines[0] == "default/demo: ready (Serving: requests are answered)"
    for part in ("2/2", f"2 x {revision}", "25 % of 200", "12 blocks, 3 MB/s", "1 workers silent", "no node fits"):
        assert part in text
    assert "not a problem" not in text
    assert max(map(len, lines)) <= 160


def test_metrics_are_summed_over_labels() -> None:
    lines = ['penstock_pulled_blocks_total{role="decode"} 3.0', 'penstock_pulled_blocks_total{role="x"} 4.0', "# HELP"]
    assert parse_metrics(lines)["penstock_pulled_blocks_total"] == 7
