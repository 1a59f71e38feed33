"""One operator for all tests, installed by Helm as a user would; a namespace of its own for every test."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.charts.conftest import CHART
from tests.cluster.kube import CommandFailed, Kube, eventually, run

RELEASE, SYSTEM = "penstock", "penstock-test-system"
VALUES = (
    *("--set", "images.control.tag=test", "--set", "images.worker.tag=test"),
    *("--set", "hubEndpoint=http://hub.penstock-test-hub.svc.cluster.local"),
    *("--set-string", "operator.env.PENSTOCK_FLAG_VERIFY_S=5"),  # tests wait for it
)
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster/" in str(item.path):
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def system() -> Kube:
    """The namespace of the operator."""
    return Kube(SYSTEM)


@pytest.fixture(scope="session")
def penstock(system: Kube) -> Iterator[Kube]:
    """The operator, both replicas ready. Afterwards only the CRDs are left."""
    options = ("--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "120s", *VALUES)
    # CRDs that kubectl applied become the release's.
    run("helm", "upgrade", "--install", "--take-ownership", RELEASE, str(CHART), *options)
    yield system
    run("helm", "uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "60s")
    eventually(lambda: not any(RELEASE in name for name in system.everything()), "the release is gone")
    assert "llmdeployments.serving.penstock.dev" in run("kubectl", "get", "crd", "--output", "name")
    run("kubectl", "delete", "namespace", SYSTEM, "--wait=false")


@pytest.fixture(scope="session")
def crds() -> Iterator[None]:
    """The CRDs, for tests that bring their own operator. Those that Helm installed stay."""
    if "llmdeployments" in run("kubectl", "get", "crd", "--output", "name"):
        yield
        return
    file = str(CHART / "files" / "crds.yaml")
    run("kubectl", "apply", "--server-side", "--filename", file)
    run("kubectl", "wait", "--for=condition=Established", "--filename", file, "--timeout=30s")
    yield
    run("kubectl", "delete", "--filename", file)


@contextmanager
def new_namespace() -> Iterator[Kube]:
    """A new, empty namespace. Its LLMDeployments are deleted afterwards, and nothing of them may be left."""
    kube = Kube(f"penstock-test-{os.getpid()}-{next(_numbers)}")
    run("kubectl", "create", "namespace", kube.namespace)
    eventually(lambda: "serviceaccount/default" in kube.everything(), "a new namespace has its ServiceAccount")
    try:
        yield kube
        kube.run("delete", "llmd", "--all", "--wait=true", "--timeout=60s")
    except CommandFailed as error:
        pytest.fail(f"{error}\n{kube.describe()}")
    finally:
        run("kubectl", "delete", "namespace", kube.namespace, "--wait=false")


@pytest.fixture
def namespace(penstock: Kube) -> Iterator[Kube]:  # noqa: ARG001 - it must be there
    with new_namespace() as kube:
        yield kube
