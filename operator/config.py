"""The operator's settings: each with its default, unit and reason, written once."""

import os
import socket
from dataclasses import dataclass

import penstock
from penstock.config import option
from penstock.telemetry.config import LogConfig, TraceConfig


@dataclass(frozen=True, kw_only=True)
class OperatorConfig(LogConfig, TraceConfig):
    """What `penstock operator` can be told. Routers and workers get its settings of logs and traces."""

    namespace: str = option("", "The one namespace to look after; the whole cluster when empty.")
    worker_image_cpu: str = option(f"penstock/worker:{penstock.__version__}", "Image of workers without GPUs.")
    worker_image_cuda: str = option(f"penstock/worker:{penstock.__version__}-cuda", "Image of workers with GPUs.")
    router_image: str = option(f"penstock/control:{penstock.__version__}", "Image of routers.")
    image_pull_policy: str = option(
        "IfNotPresent", "When images are pulled.", choices=("IfNotPresent", "Always", "Never")
    )
    hub_endpoint: str = option("", "Address of a mirror of the Hugging Face hub.")
    lease_name: str = option("penstock-operator", "Name of the Lease that the leader holds.")
    lease_namespace: str = option("default", "Namespace of that Lease: the operator's own.")
    identity: str = option("", "Name under which this process leads; the host's name when empty.")
    host: str = option("0.0.0.0", "Address of /metrics, /healthz and /readyz.")
    port: int = option(8080, "Port of /metrics, /healthz and /readyz.")
    parallel: int = option(16, "LLMDeployments that are looked after at the same time.")
    verify_s: float = option(20.0, "Pause between two looks at a deployment's KV transfers.", unit="seconds")
    verify_transfers: bool = option(
        True, "Ask the routers whether KV blocks move between their workers, and whether their predictions hold."
    )

    @property
    def holder(self) -> str:
        """Unique to this process: a restarted pod of the same name is another holder."""
        return f"{self.identity or socket.gethostname()}_{os.getpid()}_{os.urandom(4).hex()}"
