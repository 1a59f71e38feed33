"""From `helm install` to an answer in a pod, over UCX, and back to nothing: what README promises."""

import json
import re
from pathlib import Path

from tests.charts.conftest import ROOT
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


def test_ten_lines_become_an_endpoint_that_streams_with_blocks_over_ucx_and_leave_nothing(namespace: Kube) -> None:
    before = namespace.everything()
    assert len([line for line in DEMO.read_text().splitlines() if line]) <= 10
    namespace.apply(DEMO)
    ready_s = namespace.wait_ready("demo")
    print(f"first apply to Ready: {ready_s:.1f} s")
    assert ready_s < READY_S

    status = namespace.get("llmd", "demo")["status"]
    conditions = {found["type"]: found["status"] for found in status["conditions"]}
    assert conditions["KVTransferVerified"] == "True"
    assert (status["prefill"]["summary"], status["decode"]["summary"]) == ("2/2", "2/2")

    answers = json.loads(namespace.run_client("client", ASK % namespace.namespace))
    for answer in answers:
        assert answer["finish"] in ("stop", "length")
        assert answer["text"].strip()
        assert answer["chunks"] > 3, "streamed, not sent at once"

    assert pulled_blocks(namespace) > 0
    namespace.run("delete", "--filename", str(DEMO), "--wait=true", "--timeout=60s")
    left_s = eventually(lambda: namespace.everything() == before, "nothing is left", within_s=60)
    print(f"deleted without a trace in {left_s:.1f} s")


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


def test_the_same_manifest_twice_changes_nothing(namespace: Kube) -> None:
    namespace.apply(DEMO)
    namespace.wait_ready("demo")
    specs = generations(namespace)
    namespace.apply(DEMO)
    namespace.run("replace", "--filename", str(DEMO))
    namespace.run("annotate", "llmd", "demo", "kubectl.kubernetes.io/last-applied-configuration-", "note=x")
    assert generations(namespace) == specs
    assert namespace.condition("demo")["status"] == "True"
    assert ask_in_the_terminal(namespace).strip()


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


def test_every_example_is_admitted(namespace: Kube) -> None:
    for file in sorted((ROOT / "examples").glob("*.yaml")):
        namespace.run("apply", "--dry-run=server", "--filename", str(file))


def test_the_router_knows_the_workers_of_its_own_deployment_only(namespace: Kube) -> None:
    for name in ("one", "two"):
        namespace.apply(small(name))
    for name in ("one", "two"):
        namespace.wait_ready(name)
        assert known_workers(namespace, name) == addresses(namespace, name)
    namespace.run("scale", "llmpool", "one-decode", "--replicas=2")
    eventually(
        lambda: (
            len(addresses(namespace, "one")) == 3 and known_workers(namespace, "one") == addresses(namespace, "one")
        ),
        "the new worker is known",
    )


def small(name: str, uri: str = "file:///models/penstock-demo", more: str = "") -> str:
    """One worker of each kind."""
    return (
        f"{{apiVersion: serving.penstock.dev/v1alpha1, kind: LLMDeployment, metadata: {{name: {name}}}, "
        f'spec: {{model: {{uri: "{uri}"{more}}}, prefill: {{gpus: 0}}, decode: {{gpus: 0}}}}}}'
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
