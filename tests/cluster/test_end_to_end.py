"""From `helm install` to an answer in a pod, over UCX, and back to nothing: what README promises."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.charts.conftest import ROOT
from tests.cluster.conftest import new_namespace
from tests.cluster.kube import Kube, eventually

DEMO = ROOT / "examples" / "01-demo.yaml"
READY_S = 45.0
"""Images are loaded, so this is the time of schedulers, of `import torch` and of the first verified transfer."""

ASK = """
import json
from openai import OpenAI

client = OpenAI(base_url="http://demo.%s.svc/v1", api_key="none", timeout=60)
answers = []
for question in ("What is the KV cache?", "What is a penstock?", "Who decides where a request runs?"):
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "system", "content": "You answer questions about this project."},
                  {"role": "user", "content": question}],
        stream=True, temperature=0, max_tokens=64,
    )
    chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    text = "".join(choice.delta.content or "" for choice in chunks)
    answers.append({"text": text, "finish": chunks[-1].finish_reason, "chunks": len(chunks)})
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def demo(penstock: Kube) -> Iterator[Kube]:  # noqa: ARG001 - it must be there
    """The namespace in which the example is Ready; in the end it is deleted without a trace."""
    with new_namespace() as kube:
        before = kube.everything()
        kube.apply(DEMO)
        ready_s = kube.wait_ready("demo")
        print(f"first apply to Ready: {ready_s:.1f} s")
        assert ready_s < READY_S
        yield kube
        kube.run("delete", "--filename", str(DEMO), "--wait=true", "--timeout=60s")
        left_s = eventually(lambda: kube.everything() == before, "nothing is left", within_s=60)
        print(f"deleted without a trace in {left_s:.1f} s")


def test_ten_lines_become_an_endpoint_that_streams_with_blocks_over_ucx(demo: Kube) -> None:
    assert len([line for line in DEMO.read_text().splitlines() if line]) <= 10
    demo.run("wait", "--for=condition=KVTransferVerified", "llmd/demo", "--timeout=20s")
    status = demo.get("llmd", "demo")["status"]
    assert (status["prefill"]["summary"], status["decode"]["summary"]) == ("2/2", "2/2")

    answers = json.loads(demo.run_client("client", ASK % demo.namespace))
    for answer in answers:
        assert answer["finish"] in ("stop", "length")
        assert answer["text"].strip()
        assert answer["chunks"] > 3, "streamed, not sent at once"

    assert pulled_blocks(demo) > 0


def pulled_blocks(kube: Kube) -> float:
    """KV blocks that decode pods have read from other pods; all of them must use UCX."""
    pods = kube.items("pods", "serving.penstock.dev/role=decode")
    assert len(pods) == 2
    total = 0.0
    for pod in pods:
        metrics = kube.metrics(pod["metadata"]["name"], 8100)
        (info,) = [name for name in metrics if name.startswith("vllm:cache_config_info")]
        assert re.search('transport="nixl', info), info
        total += sum(value for name, value in metrics.items() if name.startswith("penstock_pulled_blocks_total"))
    return total


def test_the_same_manifest_twice_changes_nothing(demo: Kube) -> None:
    specs = generations(demo)
    demo.apply(DEMO)
    demo.replace(DEMO)
    demo.run("annotate", "llmd", "demo", "kubectl.kubernetes.io/last-applied-configuration-", "note=x")
    assert ask_in_the_terminal(demo).strip()
    assert generations(demo) == specs
    assert demo.condition("demo")["status"] == "True"


def ask_in_the_terminal(kube: Kube) -> str:
    """The last command of the README, with a question on its standard input."""
    (command,) = re.findall(r"^kubectl (run chat .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    arguments = command.replace("0.1.0", "test").replace("-it", "--stdin --quiet --restart=Never").split()
    return kube.run(*arguments, text="What is the KV cache?\n", timeout_s=60)


def generations(kube: Kube) -> dict[str, tuple[str, int]]:
    """uid and generation of everything that has one: they change when a spec does."""
    kinds = "llmd,llmpools,deployments,services,configmaps,poddisruptionbudgets,networkpolicies,roles,rolebindings"
    found = {}
    for item in kube.items(kinds):
        meta = item["metadata"]
        found[f"{item['kind']}/{meta['name']}"] = (meta["uid"], meta.get("generation", 0))
    return found


def test_every_example_is_admitted(demo: Kube) -> None:
    for file in sorted((ROOT / "examples").glob("*.yaml")):
        demo.run("apply", "--server-side", "--dry-run=server", "--force-conflicts", "--filename", str(file))


@pytest.mark.slow
def test_a_router_knows_the_workers_of_its_own_deployment_only(demo: Kube) -> None:
    demo.apply(small("other"))
    demo.wait_ready("other")
    for name in ("demo", "other"):
        assert known_workers(demo, name) == addresses(demo, name)
    demo.run("scale", "llmpool", "other-decode", "--replicas=2")
    eventually(
        lambda: len(addresses(demo, "other")) == 3 and known_workers(demo, "other") == addresses(demo, "other"),
        "the new worker is known",
    )
    demo.run("delete", "llmd", "other", "--wait=true", "--timeout=60s")


def small(name: str, uri: str = "file:///models/penstock-demo", more: str = "") -> str:
    """One worker of each kind; several such deployments fit on a node of two cores."""
    pool = "{gpus: 0, resources: {requests: {cpu: 100m}}}"
    return (
        f"{{apiVersion: serving.penstock.dev/v1alpha1, kind: LLMDeployment, metadata: {{name: {name}}}, "
        f'spec: {{model: {{uri: "{uri}"{more}}}, prefill: {pool}, decode: {pool}}}}}'
    )


def addresses(kube: Kube, name: str) -> set[str]:
    selector = f"serving.penstock.dev/deployment={name},serving.penstock.dev/role in (prefill,decode)"
    return {pod["status"].get("podIP", "") for pod in kube.items("pods", selector)}


def known_workers(kube: Kube, name: str) -> set[str]:
    """Addresses of the workers that a router pod says it knows and that are ready."""
    selector = f"serving.penstock.dev/deployment={name},serving.penstock.dev/role=router"
    pod = kube.items("pods", selector)[0]["metadata"]["name"]
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/ready').read().decode())"
    workers = json.loads(kube.run("exec", pod, "--", "python", "-c", code))["workers"]
    return {url.split("//")[1].split(":")[0] for url, worker in workers.items() if worker["ready"]}


def test_the_demo_is_the_example_that_the_readme_shows() -> None:
    assert Path(DEMO).relative_to(ROOT).as_posix() in (ROOT / "README.md").read_text()
