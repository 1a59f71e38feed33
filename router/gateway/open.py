"""The endpoint picker where the configuration asks for one; else nothing is imported."""

import importlib.util
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext

from penstock.errors import ConfigError
from penstock.router.openai.endpoint import Prepare
from penstock.router.services import Services


def open_picker(services: Services, prepare: Mapping[str, tuple[str, Prepare]]) -> AbstractAsyncContextManager[None]:
    """Serves for as long as the block lasts. `prepare` as app.PREPARE. Raises ConfigError."""
    if services.config.ext_proc_port is None:
        return nullcontext()
    if importlib.util.find_spec("grpc") is None:
        raise ConfigError(
            "--ext-proc-port needs the extra gateway, which is not installed; in a clone of Penstock run: "
            "pip install --constraint constraints.txt --editable '.[gateway]'"
        )
    from penstock.router.gateway.server import picking

    return picking(services, prepare)
