"""The example of a gateway: its parts name the same ports and labels, and its flags are the router's."""

from typing import Any

import msgspec
import pytest
import yaml

from penstock.config import Parser, add_flags, from_flags
from penstock.operator import names
from penstock.operator.api import Spec
from penstock.operator.config import OperatorConfig
from penstock.operator.render import render_revision
from penstock.router.config import RouterConfig
from tests.charts.conftest import ROOT

OBJECTS = {
    found["kind"]: found for found in yaml.safe_load_all((ROOT / "examples" / "gateway" / "demo.yaml").read_text())
}
REVISION = render_revision("demo", msgspec.convert(OBJECTS["LLMDeployment"]["spec"], Spec), OperatorConfig())


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in pod["spec"]["containers"] if one["name"] == name)
    return found


def config_of(pod: dict[str, Any], settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> RouterConfig:
    """As a container starts the router: by its environment and flags."""
    environment = settings | {one["name"]: one["value"] for one in pod["env"] if "value" in one}
    command, *arguments = pod["args"]
    assert command == "router"
    with monkeypatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        parser = Parser()
        add_flags(parser, RouterConfig)
        return from_flags(RouterConfig, parser.parse_args([one.replace("$(POD_IP)", "10.0.0.1") for one in arguments]))


def test_the_router_beside_a_worker_and_the_picker_are_started_as_each_other_expects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = OBJECTS["InferencePool"]["spec"]
    decode = container(REVISION.decode, "beside")
    beside = config_of(decode, {}, monkeypatch)
    picker = config_of(container(REVISION.router, "router"), REVISION.settings, monkeypatch)
    assert (beside.model, beside.served_model_name) == (picker.model, picker.served_model_name)
    assert beside.host == picker.host
    assert beside.beside == f"http://10.0.0.1:{names.WORKER_PORT}"
    assert picker.discover.startswith(f"{beside.discover},"), (
        "also workers of the next model: a rollout waits for /ready"
    )
    assert [beside.port] == [port["number"] for port in pool["targetPorts"]] == [decode["ports"][0]["containerPort"]]
    assert picker.endpoint_port == beside.port
    [service_port] = OBJECTS["Service"]["spec"]["ports"]
    assert picker.ext_proc_port == service_port["port"] == pool["endpointPickerRef"]["port"]["number"]
    assert pool["endpointPickerRef"]["name"] == OBJECTS["Service"]["metadata"]["name"]
    [rule] = OBJECTS["NetworkPolicy"]["spec"]["ingress"]
    assert rule["ports"][0]["port"] == beside.port


def test_the_labels_select_decode_workers_and_routers() -> None:
    decode = names.selector("demo", "decode")
    assert OBJECTS["InferencePool"]["spec"]["selector"]["matchLabels"] == decode
    assert OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == decode
    assert OBJECTS["Service"]["spec"]["selector"] == names.selector("demo", "router")
    assert decode.items() <= REVISION.decode["metadata"]["labels"].items()


def test_the_pod_has_what_the_router_beside_the_worker_needs() -> None:
    """Its account may watch EndpointSlices, its secret is the deployment's, and it can write where it must."""
    pod = REVISION.decode["spec"]
    decode = container(REVISION.decode, "beside")
    assert pod["serviceAccountName"] == REVISION.router["spec"]["serviceAccountName"]
    assert pod["automountServiceAccountToken"]
    secrets = [one["valueFrom"] for one in decode["env"] if one["name"] == "PENSTOCK_FLAG_SECRET"]
    assert secrets == [{"secretKeyRef": {"name": names.secret_name("demo"), "key": "secret"}}]
    assert {mount["name"] for mount in decode["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    assert len(pod["containers"]) == 2
