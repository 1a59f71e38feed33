"""A real operator on a real API server, as a process of the test, behind a proxy. Pods need not run for this, so a
control plane without nodes will do.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.faults.objects import new_namespace
from tests.cluster.kube import Kube
from tests.cluster.own_operator import (
    OwnOperator,
    Proxy,
    installed_operators_stand_aside,
    new_operator,
    new_proxy,
)


@pytest.fixture(scope="package", autouse=True)
def alone(crds: None) -> Iterator[None]:  # noqa: ARG001
    with installed_operators_stand_aside():
        yield


@pytest.fixture
def kube() -> Iterator[Kube]:
    with new_namespace() as kube:
        yield kube


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with new_proxy() as proxy:
        yield proxy


@pytest.fixture
def operator(kube: Kube, proxy: Proxy, tmp_path: Path) -> Iterator[OwnOperator]:
    with new_operator(kube, proxy, tmp_path) as operator:
        yield operator
