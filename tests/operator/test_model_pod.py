"""What each source of a model adds to a pod."""

import shutil
import subprocess
from pathlib import Path

import pytest

from penstock.operator import model_pod as module
from penstock.operator.model_pod import ModelPod, model_pod

IMAGE = "penstock/worker:1"


def pod(uri: str, **options: object) -> ModelPod:
    return model_pod(uri, image=IMAGE, **options)  # type: ignore[arg-type]


def test_a_folder_needs_nothing() -> None:
    assert pod("file:///models/penstock-demo") == ModelPod()


def test_a_claim_is_mounted_whole_and_read_only() -> None:
    parts = pod("pvc://models/qwen3")
    assert parts.volumes[0]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert parts.mounts == ({"name": "penstock-model", "mountPath": "/mnt/penstock/claims/models", "readOnly": True},)
    assert parts.init_containers == ()


def test_a_repository_is_fetched_with_the_token_before_anything_serves_offline() -> None:
    parts = pod("hf://a/b@main", token_secret=("hub", "token"), text_only=True)
    (fetch,) = parts.init_containers
    assert fetch["command"][:3] == ["penstock", "fetch", "hf://a/b@main"]
    assert "--text-only=true" in fetch["command"]
    token = {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert {"name": "HF_TOKEN", "valueFrom": token} in fetch["env"]
    assert parts.mounts[0]["readOnly"], "only the init container writes"
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in parts.env
    assert "HF_TOKEN" not in str(parts.env)
    assert parts.volumes == ({"name": "penstock-model", "emptyDir": {}},)


def test_a_cache_is_shared() -> None:
    cache = {"persistentVolumeClaim": {"claimName": "hub-cache"}}
    assert pod("hf://a/b", cache=cache).volumes == ({"name": "penstock-model", **cache},)


@pytest.mark.parametrize("text_only", [False, True])
def test_the_copy_of_an_image_really_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_only: bool) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox")
    monkeypatch.setattr(module, "BUSYBOX", busybox)
    source, target = tmp_path / "weights", tmp_path / "copy"
    target.mkdir()
    (source / "sub").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "with blank.json", "sub/more.json"):
        (source / name).write_text(name)
    monkeypatch.setattr(module, "TOOLS", str(tmp_path))
    monkeypatch.setattr(module, "IMAGE_COPY", str(target))
    copies = pod(f"image://registry/model:1?path={source}", text_only=text_only).init_containers
    assert [copy["image"] for copy in copies] == [IMAGE, "registry/model:1"]
    for copy in copies:
        subprocess.run(copy["command"], check=True)
    copied = {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}
    text = {"config.json", "with blank.json"}
    assert copied == (text if text_only else text | {"model.safetensors", "sub/more.json"})
