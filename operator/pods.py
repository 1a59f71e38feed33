"""Pod templates of workers and routers: every flag, port, variable, volume and probe, derived from the spec. Pure."""

import re
from typing import Any

from penstock.config import parse_bytes
from penstock.operator import api, names
from penstock.operator.config import OperatorConfig
from penstock.operator.merge import merge
from penstock.operator.model_pod import ModelPod, model_pod
from penstock.telemetry.config import telemetry_of

Template = dict[str, Any]

DRAIN_S = 30
_STOP_S = DRAIN_S + 10
"""terminationGracePeriodSeconds: streams end first, then the process."""
_START_S = 3600
"""How long a model may take to load before its pod is started again."""
_SHARED_MEMORY = "1Gi"
"""/dev/shm, over which processes of one node exchange blocks; a pod's own is 64 MB."""
_KEYS, _KEYS_FILE = "/run/penstock/keys", "keys.toml"
"""Where routers find the API keys."""
_NODE_LOST_S = 20
"""A pod on a node that does not answer is replaced after so long (Kubernetes' default: 300 s)."""


def model_uri(model: api.Model) -> str:
    """The uri with the revision in it."""
    return f"{model.uri}@{model.revision}" if model.revision else model.uri


def served_name(model: api.Model) -> str:
    """What clients call the model: the last part of the uri, without revision, tag and query, unless said."""
    if model.served_name:
        return model.served_name
    return re.split(r"[@?:]", model.uri.partition("://")[2].rstrip("/").rpartition("/")[2])[0]


def worker_pod(name: str, role: api.Role, spec: api.Spec, config: OperatorConfig) -> Template:
    """The pod template of one pool, without the labels of its revision. Raises ModelError for an impossible uri."""
    pool = spec.prefill if role == "prefill" else spec.decode
    image = config.worker_image_cuda if pool.gpus else config.worker_image_cpu
    environment = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
        _secret(name),
        {"name": "UCX_LOG_LEVEL", "value": "warn"},
    ]
    container = {
        "name": names.CONTAINER[role],
        "args": [role, *_flags(worker_flags(spec, pool))],
        "env": environment,
        "resources": _resources(pool),
        "ports": [{"name": "http", "containerPort": names.WORKER_PORT, "protocol": "TCP"}],
        "startupProbe": _probe("/health", "http", period_s=1, failures=_START_S),
        "readinessProbe": _probe("/ready", "http", period_s=2, failures=2),
        "livenessProbe": _probe("/health", "http", period_s=5, failures=3),
    }
    shared = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}}
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    model = _model_pod(spec.model, image, config, text_only=False)
    pod = _pod(name, role, pool, config, model, container, image, volumes=[shared], mounts=mounts)
    pod["spec"]["automountServiceAccountToken"] = False
    return merged_pod(pod, pool.template)


def router_pod(name: str, spec: api.Spec, config: OperatorConfig, settings_hash: str) -> Template:
    """The pod template of the router; `settings_hash` restarts it when its ConfigMap changes."""
    container = {
        "name": names.CONTAINER["router"],
        "args": ["router", *_flags(spec.router.flags)],
        "env": [_secret(name), *_redis(name, spec.router.redis_secret)],
        "envFrom": [{"configMapRef": {"name": names.pool_name(name, "router")}}],
        "resources": _requests(spec.router.resources, {"cpu": "100m", "memory": "256Mi"}),
        "ports": [{"name": "http", "containerPort": names.ROUTER_PORT, "protocol": "TCP"}],
        "startupProbe": _probe("/health", "http", period_s=1, failures=_START_S),
        "readinessProbe": _probe("/ready", "http", period_s=1, failures=2),
        "livenessProbe": _probe("/health", "http", period_s=5, failures=3),
    }
    model = _model_pod(spec.model, config.router_image, config, text_only=True)
    volumes, mounts = _keys(spec.router.keys_secret)
    pod = _pod(
        name, "router", spec.router, config, model, container, config.router_image, volumes=volumes, mounts=mounts
    )
    pod["metadata"]["annotations"] = {f"{api.GROUP}/settings": settings_hash}
    pod["spec"]["serviceAccountName"] = names.pool_name(name, "router")
    return merged_pod(pod, spec.router.template)


def router_settings(name: str, spec: api.Spec, model_hash: str) -> dict[str, str]:
    """The router's flags as environment, for its ConfigMap."""
    flags = {
        "model": model_uri(spec.model),
        "served_model_name": served_name(spec.model),
        "host": "0.0.0.0",
        "port": str(names.ROUTER_PORT),
        "discover": f"{names.DEPLOYMENT}={name},{names.MODEL}={model_hash}",
        "keys": f"{_KEYS}/{_KEYS_FILE}" if spec.router.keys_secret else "",
        "shutdown_delay_s": "3",
        "shutdown_grace_s": str(DRAIN_S),
    }
    return {f"PENSTOCK_FLAG_{flag.upper()}": value for flag, value in flags.items() if value}


def _keys(secret: api.KeysSecret | None) -> tuple[list[Template], list[Template]]:
    """Volume and mount of the key file: a whole folder, since a file that is mounted by itself never changes."""
    if secret is None:
        return [], []
    source = {"secretName": secret.name, "items": [{"key": secret.key, "path": _KEYS_FILE}], "defaultMode": 0o440}
    volume = {"name": "api-keys", "secret": source}
    return [volume], [{"name": "api-keys", "mountPath": _KEYS, "readOnly": True}]


def _redis(name: str, secret: api.RedisSecret | None) -> list[Template]:
    """Where the routers meet: a Redis may serve several deployments, of several namespaces."""
    if secret is None:
        return []
    return [
        {
            "name": "PENSTOCK_FLAG_REDIS",
            "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}},
        },
        {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}},
        {"name": "PENSTOCK_FLAG_REDIS_PREFIX", "value": f"penstock:$(POD_NAMESPACE):{name}"},
    ]


def worker_flags(spec: api.Spec, pool: api.Pool) -> dict[str, str]:
    """Flags of `penstock prefill` and `penstock decode`."""
    flags = {
        "model": model_uri(spec.model),
        "served-model-name": served_name(spec.model),
        "host": "0.0.0.0",
        "port": str(names.WORKER_PORT),
        "transfer-host": "$(POD_IP)",
        "device": "cuda" if pool.gpus else "cpu",
        "dtype": spec.kv_cache.dtype,
        "block-size": str(spec.kv_cache.block_size),
        "kv-bytes": str(_kv_bytes(spec.kv_cache, pool)),
        "transport": spec.kv_transfer.transport,
        "drain-grace-s": str(DRAIN_S),
    }
    return flags | spec.engine


def _secret(name: str) -> Template:
    """The deployment's secret as environment: workers key block hashes with it, routers what they tell of salts."""
    return {
        "name": "PENSTOCK_FLAG_SECRET",
        "valueFrom": {"secretKeyRef": {"name": names.secret_name(name), "key": "secret"}},
    }


def merged_pod(pod: Template, override: Template) -> Template:
    """`override` wins, except where the operator must find its pods again: their labels."""
    merged: Template = merge(pod, override)
    merged["metadata"]["labels"] = merged["metadata"]["labels"] | pod["metadata"]["labels"]
    return merged


def _flags(flags: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]


def _model_pod(model: api.Model, image: str, config: OperatorConfig, *, text_only: bool) -> ModelPod:
    secret = model.token_secret
    return model_pod(
        model_uri(model),
        image=image,
        pull_policy=config.image_pull_policy,
        text_only=text_only,
        token_secret=(secret.name, secret.key) if secret else None,
        hub_endpoint=config.hub_endpoint,
        cache=_cache_volume(model.cache),
    )


def _cache_volume(cache: api.Cache | None) -> dict[str, Any] | None:
    if cache is None:
        return None
    if cache.claim:
        return {"persistentVolumeClaim": {"claimName": cache.claim}}
    return {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}


def _kv_bytes(cache: api.KVCache, pool: api.Pool) -> int:
    if cache.memory_share is not None:
        limit = quantity_bytes(str(pool.resources.limits.get("memory", "0")))
        return limit * cache.memory_share // 100
    return quantity_bytes(cache.size or ("4Gi" if pool.gpus else "256Mi"))


def quantity_bytes(text: str) -> int:
    """Bytes of a Kubernetes quantity of memory, whose Gi is the flags' GiB."""
    return parse_bytes(text + "B" if text.endswith("i") else text)


def _resources(pool: api.Pool) -> dict[str, Any]:
    default = {"cpu": "2", "memory": "8Gi"} if pool.gpus else {"cpu": "250m", "memory": "512Mi"}
    resources = _requests(pool.resources, default)
    if pool.gpus:
        resources["limits"] = {"nvidia.com/gpu": str(pool.gpus)} | resources.get("limits", {})
    return resources


def _requests(resources: api.Resources, default: dict[str, str]) -> dict[str, Any]:
    """Requests that nobody set: the limit where there is one (as Kubernetes does), else a modest default."""
    requests = {name: value for name, value in default.items() if name not in resources.limits} | resources.requests
    return {
        key: {name: str(value) for name, value in amounts.items()}
        for key, amounts in (("requests", requests), ("limits", resources.limits))
        if amounts
    }


def _probe(path: str, port: str, *, period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
        "successThreshold": 1,
    }


def _pod(
    name: str,
    role: api.Role,
    pods: api.Pods,
    config: OperatorConfig,
    model: ModelPod,
    container: Template,
    image: str,
    *,
    volumes: list[Template],
    mounts: list[Template],
) -> Template:
    """What all pods share: no rights, no writable root, and the user's node selector and tolerations."""
    writable = {"name": "tmp", "emptyDir": {}}
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    home = [{"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "penstock"}]
    telemetry = [
        {"name": f"PENSTOCK_FLAG_{name.upper()}", "value": str(value)} for name, value in telemetry_of(config).items()
    ]
    common: Template = {
        "image": image,
        "imagePullPolicy": config.image_pull_policy,
        "securityContext": security,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    container = {**common, **container}
    container["env"] = [*home, *telemetry, *container["env"], *model.env]
    container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}, *mounts, *model.mounts]
    spec: Template = {
        "containers": [container],
        "volumes": [writable, *volumes, *model.volumes],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _STOP_S,
        "tolerations": [*(_toleration(toleration) for toleration in pods.tolerations), *_node_lost()],
    }
    if model.init_containers:
        spec["initContainers"] = [common | init for init in model.init_containers]
    if pods.node_selector:
        spec["nodeSelector"] = pods.node_selector
    return {"metadata": {"labels": names.labels(name, role)}, "spec": spec}


def _toleration(toleration: api.Toleration) -> dict[str, Any]:
    parts = {
        "key": toleration.key,
        "operator": toleration.operator,
        "value": toleration.value,
        "effect": toleration.effect,
        "tolerationSeconds": toleration.toleration_seconds,
    }
    return {key: value for key, value in parts.items() if value not in ("", None)}


def _node_lost() -> list[dict[str, Any]]:
    return [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": _NODE_LOST_S,
        }
        for taint in ("not-ready", "unreachable")
    ]
