"""What a pod needs so that its containers find their model: volumes, mounts, environment and init containers. Pure.

Every container is told the user's own URI (`--model`) and finds the folder as `penstock up` does (penstock.sources).
- pvc:// is mounted read-only, whole, so that a missing folder is a sentence of ours and not a kubelet's.
- hf:// is fetched by an init container into the hub's cache; what serves is offline and cannot write there.
- image:// is copied by an init container that runs the model's own image. Such an image may hold nothing but files, so
  a first init container brings a static `cp` along. (Image volumes are off in Kubernetes 1.34, and the API server drops
  the field without an error.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.sources.uri import HUB_HOME, IMAGE_COPY, MOUNTS, Claim, Folder, Hub, Image, parse_source

Object = dict[str, Any]
"""A piece of a manifest."""

VOLUME = "penstock-model"
TOOLS_VOLUME, TOOLS = "penstock-tools", f"{MOUNTS}/tools"
BUSYBOX = "/bin/busybox"
"""A static busybox, in both images of Penstock."""
FETCH_CONTAINER = "fetch-model"
TERMINATION_LOG = "/dev/termination-log"
_TEXT_COPY = '"$0" find "$1" -maxdepth 1 -type f ! -name "*.safetensors" ! -name "*.bin" -exec "$0" cp {} "$2" ";"'
_WHOLE_COPY = '"$0" cp -R "$1/." "$2"'
SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True)
class ModelPod:
    """Parts to merge into a pod; `mounts` and `env` are for its serving containers."""

    volumes: tuple[Object, ...] = ()
    mounts: tuple[Object, ...] = ()
    env: tuple[Object, ...] = ()
    init_containers: tuple[Object, ...] = ()


def model_pod(
    uri: str,
    *,
    image: str,
    pull_policy: str = "IfNotPresent",
    text_only: bool = False,
    token_secret: tuple[str, str] | None = None,
    hub_endpoint: str = "",
    cache: Mapping[str, Any] | None = None,
) -> ModelPod:
    """The parts for the model at `uri`. Raises ModelError when it names none.

    `image` is Penstock's own and runs the init containers; `text_only` is for the router, which reads no weights;
    `token_secret` is the name and the key of the Secret with the hub's token. `cache` is the volume source that keeps
    what was fetched: a claim or a hostPath shares it between pods, and without one each pod fetches for itself.
    """
    match parse_source(uri):
        case Folder():
            return ModelPod()
        case Claim() as claim:
            volume = {"persistentVolumeClaim": {"claimName": claim.name, "readOnly": True}}
            return ModelPod((_volume(volume),), (_mount(claim.mount_path, read_only=True),))
        case Hub():
            parts = _fetch(uri, image, pull_policy, text_only, _hub_env(token_secret, hub_endpoint))
            return ModelPod(
                (_volume(cache or {"emptyDir": {}}),),
                (_mount(HUB_HOME, read_only=True),),
                (_env("HF_HOME", HUB_HOME), _env("HF_HUB_OFFLINE", "1")),
                (parts,),
            )
        case Image() as model_image:
            return ModelPod(
                (_volume({"emptyDir": {}}), {"name": TOOLS_VOLUME, "emptyDir": {}}),
                (_mount(IMAGE_COPY, read_only=True),),
                (),
                _copy(model_image, image, pull_policy, text_only),
            )


def _fetch(uri: str, image: str, pull_policy: str, text_only: bool, env: list[Object]) -> Object:
    flags = [f"--termination-log={TERMINATION_LOG}", *(["--text-only=true"] if text_only else [])]
    return {
        "name": FETCH_CONTAINER,
        "image": image,
        "imagePullPolicy": pull_policy,
        "command": ["penstock", "fetch", uri, *flags],
        "env": env,
        "volumeMounts": [_mount(HUB_HOME)],
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": SECURITY,
    }


def _hub_env(token_secret: tuple[str, str] | None, endpoint: str) -> list[Object]:
    env = [_env("HF_HOME", HUB_HOME)]
    if endpoint:
        env.append(_env("HF_ENDPOINT", endpoint))
    if token_secret:
        name, key = token_secret
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}})
    return env


def _copy(model: Image, image: str, pull_policy: str, text_only: bool) -> tuple[Object, ...]:
    tools = {"name": TOOLS_VOLUME, "mountPath": TOOLS}
    shared = {
        "imagePullPolicy": pull_policy,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": SECURITY,
    }
    busybox = f"{TOOLS}/busybox"
    script = _TEXT_COPY if text_only else _WHOLE_COPY
    return (
        {
            "name": "copy-tool",
            "image": image,
            "command": [BUSYBOX, "cp", BUSYBOX, busybox],
            "volumeMounts": [tools],
            **shared,
        },
        {
            "name": "copy-model",
            "image": model.reference,
            "command": [busybox, "sh", "-c", script, busybox, model.path, IMAGE_COPY],
            "volumeMounts": [tools, _mount(IMAGE_COPY)],
            **shared,
        },
    )


def _volume(source: Mapping[str, Any]) -> Object:
    return {"name": VOLUME, **source}


def _mount(path: str, *, read_only: bool = False) -> Object:
    return {"name": VOLUME, "mountPath": path} | ({"readOnly": True} if read_only else {})


def _env(name: str, value: str) -> Object:
    return {"name": name, "value": value}
