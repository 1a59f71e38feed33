"""`penstock doctor`: what is missing on this machine and in this cluster, each with what to do about it."""

import asyncio
import importlib.metadata
import shutil
import sys
from pathlib import Path

import penstock
from penstock.extras import describe_missing
from penstock.operator.commands.config import DoctorConfig
from penstock.operator.commands.finding import Finding


def run_doctor(config: DoctorConfig) -> int:
    """Prints the findings. Exit status 1 when one of them is a failure."""
    findings = [*_machine(), *_cluster(config)]
    for finding in findings:
        print(f"{finding.verdict:<5} {finding.what:<12} {finding.said}")
    return 1 if any(finding.verdict == "FAIL" for finding in findings) else 0


def _machine() -> list[Finding]:
    """This machine: a laptop, or the pod it runs in."""
    found = [Finding("ok", "version", f"penstock {penstock.__version__}, Python {sys.version.split()[0]}")]
    for name, packages in {"torch": ["torch"], "nixl": ["nixl-cu12", "nixl-cu13"], "triton": ["triton"]}.items():
        versions = [f"{package} {version}" for package in packages if (version := _version(package))]
        found.append(Finding("ok", name, ", ".join(versions) or "not installed here (only workers need it)"))
    has_gpu = shutil.which("nvidia-smi") is not None
    found.append(Finding("ok", "GPU", "nvidia-smi is here" if has_gpu else "none on this machine"))
    devices = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
    said = ", ".join(devices) if devices else "no device here: KV blocks move over TCP or shared memory"
    return [*found, Finding("ok", "RDMA", said)]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cluster(config: DoctorConfig) -> list[Finding]:
    try:
        from penstock.operator.commands.cluster import look_at_cluster
    except ModuleNotFoundError as error:
        said = f"not looked at: {describe_missing(error, 'penstock doctor', 'operator')}"
        return [Finding("warn", "cluster", said)]
    return asyncio.run(look_at_cluster(config))
