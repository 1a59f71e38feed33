"""Writes constraints-cuda.txt: what torch's CUDA build brings along, at the versions that its own metadata asks for.

    python docker/pin_cuda.py

Reads metadata of the package index only: the wheels themselves are gigabytes, and only an image with GPUs needs them.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILE = ROOT / "constraints-cuda.txt"
INDEX = "https://pypi.org/simple"  # not where a CPU build may lie
HEADER = """\
# What torch=={torch} for CUDA brings along, in the worker image for GPUs. `python docker/pin_cuda.py` writes this from
# the metadata of the wheels. Nothing here is installed where torch is a CPU build.
"""


def main() -> None:
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    found = resolve(Requirement(f"torch=={pins['torch']}"), leave_out={canonicalize_name(name) for name in pins})
    lines = [f"{name}=={version}" for name, version in sorted(found.items())]
    FILE.write_text(HEADER.format(torch=pins["torch"]) + "\n".join(lines) + "\n")
    print(f"{FILE.name}: {len(lines)} packages")


def resolve(root: Requirement, leave_out: set[str]) -> dict[str, str]:
    """Versions of all that `root` needs. A package that is met again with more to ask of it is looked up again."""
    asked: dict[str, Requirement] = {}
    found: dict[str, str] = {}
    wanted = [root]
    while wanted:
        need = wanted.pop(0)
        name = canonicalize_name(need.name)
        before = asked.get(name, Requirement(name))
        now = Requirement(name)
        now.specifier, now.extras = before.specifier & need.specifier, before.extras | need.extras
        if name in asked and (now.specifier, now.extras) == (before.specifier, before.extras):
            continue
        asked[name] = now
        metadata = metadata_of(now)
        if need is not root:
            found[name] = metadata["version"]
        wanted += [part for part in needs_of(metadata, now.extras) if canonicalize_name(part.name) not in leave_out]
    return found


def metadata_of(need: Requirement) -> dict[str, Any]:
    """Of the wheel that pip would take. Downloads nothing else."""
    options = ["--dry-run", "--no-deps", "--ignore-installed", "--only-binary=:all:", "--report", "-", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--index-url", INDEX, f"{need.name}{need.specifier}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    metadata: dict[str, Any] = json.loads(result.stdout)["install"][0]["metadata"]
    return metadata


def needs_of(metadata: dict[str, Any], extras: set[str]) -> list[Requirement]:
    """What it needs on this machine, with these extras."""
    needs = [Requirement(text) for text in metadata.get("requires_dist", ())]
    return [
        need
        for need in needs
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


if __name__ == "__main__":
    main()
