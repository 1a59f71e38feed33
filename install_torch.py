"""Installs the torch that constraints.txt pins into the Python that runs this file: `make` calls it.

Plain pip would take torch's CUDA build from PyPI on any Linux, with gigabytes of NVIDIA libraries. So this asks pip
first which file it would take (a dry run reads metadata only) and, without a GPU, installs only a build that needs none
of them: what pip's own configuration offers, else PyTorch's CPU index. If neither has one, it stops and downloads
nothing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def main() -> None:
    pinned = re.search(r"^torch==(\S+)", (Path(__file__).parent / "constraints.txt").read_text(), re.MULTILINE)
    if pinned is None:
        sys.exit("constraints.txt does not pin torch")
    version = pinned[1]
    if _installed() == version:
        return
    has_gpu = shutil.which("nvidia-smi") is not None
    cuda_is_welcome = has_gpu or os.environ.get("PENSTOCK_TORCH") == "cuda"
    refused = None
    for options in ([], ["--index-url", CPU_INDEX]):
        found = _what_pip_would_take(version, options)
        if found and (cuda_is_welcome or not _cuda_packages(found)):
            _install(found, options)
            return
        refused = refused or found
    sys.exit(_refusal(version, refused))


def _installed() -> str | None:
    try:
        return metadata.version("torch").split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _what_pip_would_take(version: str, options: list[str]) -> dict[str, Any] | None:
    """pip's report on the one file it would install, or None where it finds none. Downloads no package."""
    command = [*PIP, "install", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-", "--only-binary=:all:"]
    if options:
        command += ["--retries", "1", "--timeout", "10"]
    result = subprocess.run([*command, *options, f"torch=={version}"], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        return None
    report: dict[str, Any] = json.loads(result.stdout)["install"][0]
    return report


def _cuda_packages(report: dict[str, Any]) -> list[str]:
    needs = report["metadata"].get("requires_dist", [])
    return [need.split(";")[0].strip() for need in needs if re.match(r"nvidia-|cuda-", need)]


def _install(report: dict[str, Any], options: list[str]) -> None:
    print(f"torch {report['metadata']['version']} from {report['download_info']['url'].rsplit('/', 1)[0]}")
    subprocess.run(
        [*PIP, "install", "--no-compile", "--no-deps", *options, f"torch=={report['metadata']['version']}"], check=True
    )


def _refusal(version: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return f"No torch {version} for this Python: neither pip's configured places nor {CPU_INDEX} offer a wheel."
    url = found["download_info"]["url"]
    return (
        f"This machine has no GPU, and no CPU build of torch {version} can be reached: {CPU_INDEX} does not answer\n"
        f"and pip is configured with no other place that has one. Nothing was downloaded. pip would have taken\n"
        f"  {url.rsplit('/', 1)[1]} ({_size(url)}) and with it {', '.join(_cuda_packages(found))}: several GB.\n"
        "Either put a CPU wheel in a folder and set PIP_FIND_LINKS to it, or set PENSTOCK_TORCH=cuda to download these."
    )


def _size(url: str) -> str:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10) as answer:
            return f"{int(answer.headers['Content-Length']) / 1e6:.0f} MB"
    except (OSError, TypeError, ValueError):
        return "size unknown"


if __name__ == "__main__":
    main()
