"""Skips what this machine cannot run, each with one sentence; lets Hypothesis judge by results, not by the clock."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

# An example that takes long says nothing where others use the machine, too.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("penstock")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    has_gpu = shutil.which("nvidia-smi") is not None
    has_redis = shutil.which("redis-server") is not None
    has_cluster = "KUBECONFIG" in os.environ
    for item in items:
        if "gpu" in item.keywords and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and nvidia-smi is not on PATH"))
        if "redis" in item.keywords and not has_redis:
            item.add_marker(pytest.mark.skip(reason="needs redis-server on PATH: apt-get install redis-server"))
        if "cluster" in item.keywords and not has_cluster:
            item.add_marker(pytest.mark.skip(reason="needs a Kubernetes cluster: make test-cluster, or set KUBECONFIG"))
