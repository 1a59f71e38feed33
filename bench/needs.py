"""Packages that `make demo` does not install: without them a benchmark ends with a sentence."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.extras import describe_missing


@contextmanager
def needs(extras: str) -> Iterator[None]:
    """Around imports. Raises SystemExit that says how to install `extras` when a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        program = f"python -m bench.{Path(sys.argv[0]).stem}"
        raise SystemExit(
            describe_missing(error, program, extras) + " (`make dev` installs all that is needed)"
        ) from None
