"""Each source of a model in real pods: a claim, an image that holds nothing but files, and a hub."""

import json
from collections.abc import Iterator

import pytest

from tests.charts.conftest import ROOT
from tests.cluster.conftest import SYSTEM
from tests.cluster.kube import Kube, eventually, run
from tests.cluster.test_end_to_end import small

CONTROL_IMAGE = "penstock/control:test"
MODEL_IMAGE = "penstock/test-model:test"
HUB = "penstock-test-hub"


def answer(kube: Kube, name: str) -> str:
    code = (
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="http://{name}.{kube.namespace}.svc/v1", api_key="none", timeout=60)\n'
        "print(client.chat.completions.create(model=client.models.list().data[0].id, temperature=0, max_tokens=32,\n"
        '      messages=[{"role": "user", "content": "What is the KV cache?"}]).choices[0].message.content)\n'
    )
    return kube.run_client(f"client-{name}", code).strip()


def test_a_model_image_of_files_only_is_copied(namespace: Kube) -> None:
    namespace.apply(small("img", f"image://{MODEL_IMAGE}"))
    namespace.wait_ready("img")
    assert answer(namespace, "img")


def test_a_model_image_without_the_folder_says_so_in_the_status(namespace: Kube) -> None:
    namespace.apply(small("img", f"image://{MODEL_IMAGE}?path=/nowhere"))
    eventually(
        lambda: "/nowhere" in namespace.condition("img").get("message", ""),
        f"Ready names the missing folder\n{namespace.describe()}",
        within_s=60,
    )


@pytest.mark.slow
def test_a_model_in_a_claim_is_served_and_a_missing_folder_is_named(namespace: Kube) -> None:
    volume = f"penstock-test-{namespace.namespace}"
    namespace.apply(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "List",
                "items": [_volume(volume), _claim(volume), _filler()],
            }
        )
    )
    try:
        namespace.run("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/filler", "--timeout=60s")
        namespace.apply(small("mine", "pvc://models/demo"))
        namespace.wait_ready("mine")
        assert answer(namespace, "mine")
        namespace.run("delete", "llmd", "mine")
        namespace.apply(small("typo", "pvc://models/dmeo"))
        eventually(
            lambda: "there is no folder" in namespace.condition("typo").get("message", ""),
            "Ready names the missing folder",
            within_s=60,
        )
    finally:
        run("kubectl", "delete", "persistentvolume", volume, "--wait=false")


def _volume(name: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany", "ReadOnlyMany"],
            "storageClassName": "",
            "hostPath": {"path": f"/tmp/{name}", "type": "DirectoryOrCreate"},
        },
    }


def _claim(volume: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": volume,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def _filler() -> dict[str, object]:
    """Copies the demonstration model into the claim."""
    copy = "mkdir -p /claim/demo && cp -RL /models/penstock-demo/. /claim/demo"
    container = {
        "name": "copy",
        "image": CONTROL_IMAGE,
        "command": ["sh", "-c", copy],
        "securityContext": {"runAsUser": 0},  # the folder of a hostPath belongs to root
        "volumeMounts": [{"name": "claim", "mountPath": "/claim"}],
    }
    volumes = [{"name": "claim", "persistentVolumeClaim": {"claimName": "models"}}]
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "filler"}, "spec": spec}


@pytest.fixture
def hub(penstock: Kube) -> Iterator[Kube]:
    """A hub in the cluster with one private repository, penstock/demo; its token is `right`."""
    assert penstock.namespace == SYSTEM
    kube = Kube(HUB)
    run("kubectl", "create", "namespace", HUB)
    code = (ROOT / "tests" / "sources" / "fake_hub.py").read_text()
    serve = (
        "import pathlib, sys, threading; sys.path.insert(0, '/code'); from fake_hub import FakeHub\n"
        "files = {f.name: f.read_bytes() for f in pathlib.Path('/models/penstock-demo').iterdir()}\n"
        "hub = FakeHub('penstock/demo', files, token='right', host='0.0.0.0', port=8080, delay_s=8)\n"
        "with hub: threading.Event().wait()\n"
    )
    container = {
        "name": "hub",
        "image": CONTROL_IMAGE,
        "command": ["python", "-c", serve],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "code", "mountPath": "/code"}],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "hub", "labels": {"app": "hub"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [{"name": "code", "configMap": {"name": "code"}}],
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "hub"},
        "spec": {"selector": {"app": "hub"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"fake_hub.py": code}}
    kube.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": [config, pod, service]}))
    kube.run("wait", "--for=condition=Ready", "pod/hub", "--timeout=60s")
    yield kube
    run("kubectl", "delete", "namespace", HUB, "--wait=true", "--timeout=60s")


@pytest.mark.slow
def test_a_repository_of_a_hub_is_fetched_with_the_token_and_a_missing_one_is_said(namespace: Kube, hub: Kube) -> None:
    assert hub.namespace == HUB
    namespace.apply(small("private", "hf://penstock/demo@main"))
    eventually(
        lambda: "spec.model.tokenSecret" in namespace.condition("private").get("message", ""),
        "Ready says that a token is needed",
        within_s=60,
    )
    namespace.run("create", "secret", "generic", "hub", "--from-literal=token=right")
    namespace.apply(small("fetched", "hf://penstock/demo@main", ", tokenSecret: {name: hub}"))
    eventually(
        lambda: namespace.condition("fetched", "PrefillAvailable").get("reason") == "FetchingModel",
        "the status says that the model is being fetched",
        within_s=60,
    )
    assert "hf://penstock/demo@main: fetching 6." in namespace.condition("fetched")["message"]
    namespace.wait_ready("fetched")
    assert answer(namespace, "fetched")
