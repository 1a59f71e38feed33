"""The endpoint picker where the configuration asks for one; else nothing is imported."""

import importlib.util
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext

from penstock.errors import ConfigError
from penstock.router.openai.endpoint import Prepare
from penstock.router.services import Services


def open_picker(
    services: Services, prepare: Mapping[str, tuple[str, Prepare]]
) -> AbstractAsyncContextManager[None]:
    """Serves for as long as the block lasts. `prepare` as app.PREPARE. Raises ConfigError."""
    if services.config.ext_proc_port is None:
        return nullcontext()
    for package in ("grpc", "google.protobuf"):
        if _lacks(package):
            raise ConfigError(
                "--ext-proc-port needs the extra gateway, which is not installed; in a clone of Penstock run: "
                "pip install --constraint constraints.txt --editable '.[gateway]'"
            )
    from penstock.router.gateway.server import picking

    return picking(services, prepare)


def _lacks(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except ModuleNotFoundError:  # not even its parent
        return True
