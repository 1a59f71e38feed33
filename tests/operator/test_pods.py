"""What the operator derives for pods."""

import dataclasses
from typing import Any

import pytest

from penstock.operator import api
from penstock.operator.config import OperatorConfig
from penstock.operator.pods import quantity_bytes, router_pod, served_name
from penstock.operator.render import Revision, render_revision
from tests.operator.world import DEMO, spec

CONFIG = OperatorConfig(worker_image_cpu="w:cpu", worker_image_cuda="w:cuda", router_image="r:1")


def revision(**changes: Any) -> Revision:
    return render_revision("demo", spec(**changes), CONFIG)


def worker(found: Revision, role: api.Role = "decode") -> dict[str, Any]:
    container: dict[str, Any] = found.pod(role)["spec"]["containers"][0]
    return container


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("file:///models/penstock-demo", "penstock-demo"),
        ("pvc://claim/llama/3.1-8b/", "3.1-8b"),
        ("hf://Qwen/Qwen3-0.6B@main", "Qwen3-0.6B"),
        ("image://registry.example.com:5000/models/qwen3:1.0?path=/x", "qwen3"),
    ],
)
def test_the_model_is_named_once(uri: str, name: str) -> None:
    if "?" not in uri:
        assert served_name(api.Model(uri=uri)) == name
    assert served_name(api.Model(uri=uri, served_name="mine")) == "mine"


def test_workers_get_their_flags() -> None:
    container = worker(revision(kv_cache=api.KVCache(size="1Gi", block_size=32), engine={"max-sequences": "8"}))
    assert container["args"][0] == "decode"
    for flag in (
        "--model=file:///models/penstock-demo",
        "--served-model-name=penstock-demo",
        "--transfer-host=$(POD_IP)",
        "--device=cpu",
        "--kv-bytes=1073741824",
        "--block-size=32",
        "--max-sequences=8",
    ):
        assert flag in container["args"]


def test_gpus_choose_image_device_and_limits() -> None:
    found = revision(decode=api.Pool(gpus=1))
    assert (worker(found)["image"], worker(found, "prefill")["image"]) == ("w:cuda", "w:cpu")
    assert worker(found)["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert "--device=cuda" in worker(found)["args"]


def test_a_share_of_memory_becomes_bytes() -> None:
    pool = api.Pool(gpus=0, resources=api.Resources(limits={"memory": "2Gi"}))
    found = revision(decode=pool, prefill=pool, kv_cache=api.KVCache(memory_share=25))
    assert f"--kv-bytes={2**29}" in worker(found)["args"]


def test_pods_are_restricted() -> None:
    found = revision()
    for role in api.ROLES:
        pod = found.pod(role)["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["enableServiceLinks"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert found.decode["spec"]["automountServiceAccountToken"] is False


def test_overrides_win_but_pods_are_still_found() -> None:
    template = {
        "metadata": {"labels": {"team": "a", "serving.penstock.dev/role": "router"}},
        "spec": {"containers": [{"name": "worker", "env": [{"name": "UCX_TLS", "value": "tcp,self"}]}]},
    }
    found = revision(decode=api.Pool(gpus=0, template=template))
    assert {"name": "UCX_TLS", "value": "tcp,self"} in worker(found)["env"]
    assert found.decode["metadata"]["labels"]["team"] == "a"
    assert found.decode["metadata"]["labels"]["serving.penstock.dev/role"] == "decode"


def test_replicas_do_not_make_a_revision() -> None:
    assert revision() == revision(decode=api.Pool(replicas=9, gpus=0))


def test_what_changes_pods_makes_a_revision() -> None:
    base = revision()
    assert revision(engine={"max-sequences": "8"}).hash != base.hash
    assert revision(engine={"max-sequences": "8"}).model == base.model
    other = revision(model=api.Model(uri="pvc://a/b"))
    assert (other.hash != base.hash, other.model != base.model) == (True, True)


def test_the_router_s_settings_restart_it() -> None:
    base, renamed = revision(), revision(model=api.Model(uri=DEMO.uri, served_name="other"))
    assert base.router["metadata"]["annotations"] != renamed.router["metadata"]["annotations"]


def test_quantities() -> None:
    assert [quantity_bytes(text) for text in ("1Gi", "512Mi", "1G", "1024")] == [2**30, 2**29, 10**9, 1024]


def test_routers_and_workers_log_and_trace_as_the_operator_is_told() -> None:
    config = dataclasses.replace(CONFIG, log_format="json", log_requests=True, otlp_endpoint="http://otel:4318")
    found = render_revision("demo", spec(), config)
    router = router_pod("demo", spec(), config, "")["spec"]["containers"][0]
    for container in (worker(found), worker(found, "prefill"), router):
        told = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert told["PENSTOCK_FLAG_LOG_FORMAT"] == "json"
        assert told["PENSTOCK_FLAG_LOG_REQUESTS"] == "True"
        assert told["PENSTOCK_FLAG_OTLP_ENDPOINT"] == "http://otel:4318"
        assert "PENSTOCK_FLAG_TRACE_RATIO" not in told
    assert not any("OTLP" in entry["name"] for entry in worker(revision())["env"])


def test_routers_and_workers_share_the_deployments_secret() -> None:
    """Routers name tenants' salts by it: all the same, so that they share what is cached."""
    found = revision()
    router = router_pod("demo", spec(), CONFIG, "")["spec"]["containers"][0]
    source = {"secretKeyRef": {"name": "demo-hash", "key": "secret"}}
    for container in (worker(found), worker(found, "prefill"), router):
        assert {"name": "PENSTOCK_FLAG_SECRET", "valueFrom": source} in container["env"]


def test_the_router_gets_its_keys_and_flags() -> None:
    def router(**changes: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
        found = revision(router=api.Router(**changes))
        pod = found.router["spec"]
        return pod, pod["containers"][0], found.settings

    pod, container, settings = router()
    assert container["args"] == ["router"]
    assert "PENSTOCK_FLAG_KEYS" not in settings
    assert all("secret" not in volume for volume in pod["volumes"])
    pod, container, settings = router(keys_secret=api.KeysSecret(name="ours", key="k"), flags={"max-wait-s": "10"})
    assert container["args"] == ["router", "--max-wait-s=10"]
    (volume,) = [volume for volume in pod["volumes"] if "secret" in volume]
    assert volume["secret"]["secretName"] == "ours"
    assert volume["secret"]["items"] == [{"key": "k", "path": "keys.toml"}]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
    assert "subPath" not in mount, "a file that is mounted by itself never changes"
    assert settings["PENSTOCK_FLAG_KEYS"] == f"{mount['mountPath']}/keys.toml"


def test_routers_meet_in_redis_under_a_name_of_their_own() -> None:
    def environment(**changes: Any) -> dict[str, Any]:
        (container,) = revision(router=api.Router(replicas=2, **changes)).router["spec"]["containers"]
        return {variable["name"]: variable for variable in container["env"]}

    assert not any("REDIS" in name for name in environment())
    found = environment(redis_secret=api.RedisSecret(name="ours"))
    assert found["PENSTOCK_FLAG_REDIS"]["valueFrom"] == {"secretKeyRef": {"name": "ours", "key": "url"}}
    assert found["PENSTOCK_FLAG_REDIS_PREFIX"]["value"] == "penstock:$(POD_NAMESPACE):demo"
    names = list(found)
    assert names.index("POD_NAMESPACE") < names.index("PENSTOCK_FLAG_REDIS_PREFIX"), "only earlier ones are expanded"
