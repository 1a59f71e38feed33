"""What is said when a package is missing because its extra of pyproject.toml was not installed."""

import importlib.util

FIRST_TORCH = "python install_torch.py && "
"""Plain pip would take torch's build for CUDA."""


def require(package: str) -> None:
    """Raises ModuleNotFoundError when `package`, which another process will import, is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def describe_missing(error: ModuleNotFoundError, program: str, extras: str) -> str:
    """One sentence: what `program` lacks, and how to install it with `extras` (names, separated by commas).

    Raises `error` itself when a module of Penstock is missing, or when no extra has it: that is a mistake of ours.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", "penstock", "bench") or not extras:
        raise error
    torch = "" if extras in ("router", "operator") else FIRST_TORCH
    return (
        f"`{program}` needs the Python package {package} of the extra {extras}, which is not installed; in a clone of "
        f"Penstock run: {torch}pip install --constraint constraints.txt --editable '.[{extras}]'"
    )
