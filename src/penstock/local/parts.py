"""The kinds of parts that local mode keeps running: workers, forked from the nursery, and routers."""

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Protocol

from penstock.address import base_url
from penstock.listen import bind, free_port
from penstock.local.child import Child, process_ended
from penstock.local.config import LocalConfig
from penstock.local.forks import Forks
from penstock.local.liveness import answers_200
from penstock.local.logs import Logs
from penstock.telemetry.config import telemetry_of
from penstock.worker.config import Role, WorkerConfig
from penstock.worker.lifetime import describe_exit

GRACE_S = 1.0
"""How long streams may go on when local mode stops: all must be gone within 3 s."""
READY_POLL_S = 0.05
EXIT_CONFIG = 2
"""How a command ends that refuses its flags or configuration (see cli.py)."""


class Part(Protocol):
    """Something that runs as one process at a time, always under the same URL."""

    @property
    def name(self) -> str: ...

    @property
    def url(self) -> str: ...

    async def launch(self) -> Child:
        """Starts the process."""


@dataclass
class WorkerPart:
    """A prefill or decode worker."""

    name: str
    config: WorkerConfig
    forks: Forks
    logs: Logs

    @property
    def url(self) -> str:
        return base_url(self.config.host, self.config.port)

    async def launch(self) -> Child:
        return await self.forks.fork(self.name, self.config, await self.logs.open(self.name))


@dataclass
class RouterPart:
    """A router: a process without torch."""

    name: str
    url: str
    flags: list[str]
    secrets: dict[str, str]
    """Flags that other users of this machine must not see in the list of processes."""
    logs: Logs

    async def launch(self) -> Child:
        log = await self.logs.open(self.name)
        command = [sys.executable, "-m", "penstock.local.tether", str(os.getpid()), "router", *self.flags]
        secrets = {f"PENSTOCK_FLAG_{name}": value for name, value in self.secrets.items()}
        grace = {"PENSTOCK_FLAG_SHUTDOWN_GRACE_S": f"{GRACE_S}"}  # unless the user's own environment has another
        process = _spawn(command, log, grace | os.environ | secrets)
        child = Child(self.name, process.pid)
        child.watch(_watch(process, child))
        child.watch(_poll_ready(self.url, child))
        return child


def worker_parts(config: LocalConfig, forks: Forks, logs: Logs) -> list[WorkerPart]:
    """The workers that `config` asks for, each on a free port of the loopback address."""
    roles: list[tuple[Role, int]] = [("prefill", config.prefill), ("decode", config.decode)]
    names = [(role, f"{role}-{number}") for role, count in roles for number in range(count)]
    return [
        WorkerPart(
            name,
            WorkerConfig(
                role=role,
                engine=config.engine,
                port=free_port(),
                drain_grace_s=GRACE_S,
                served_model_name=config.served_model_name,
                **telemetry_of(config),
            ),
            forks,
            logs,
        )
        for role, name in names
    ]


def router_parts(config: LocalConfig, workers: list[WorkerPart], logs: Logs) -> list[RouterPart]:
    """The routers for these workers. Raises ConfigError when a port is taken."""
    ports = (
        list(range(config.port, config.port + config.routers))
        if config.port
        else [free_port() for _ in range(config.routers)]
    )
    for port in ports:
        bind(config.host, port).close()
    secrets = {"SECRET": config.engine.secret, "REDIS": config.redis}
    names = ["router"] if config.routers == 1 else [f"router-{number}" for number in range(config.routers)]
    return [
        RouterPart(name, base_url(config.host, port), _router_flags(config, workers, port), secrets, logs)
        for name, port in zip(names, ports, strict=True)
    ]


def _router_flags(config: LocalConfig, workers: list[WorkerPart], port: int) -> list[str]:
    flags = {
        "model": config.engine.model,
        "served-model-name": config.served_model_name,
        "host": config.host,
        "port": port,
        "prefill": ",".join(part.url for part in workers if part.config.role == "prefill"),
        "decode": ",".join(part.url for part in workers if part.config.role == "decode"),
        "policy": config.policy,
    }
    if config.keys:
        flags["keys"] = config.keys
    if config.engine.max_context_tokens:
        flags["max-context-tokens"] = config.engine.max_context_tokens
    flags |= {name.replace("_", "-"): value for name, value in telemetry_of(config).items()}
    return [f"--{name}={value}" for name, value in flags.items()]


def _spawn(command: list[str], log: int, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Starts a process out of reach of the terminal's Ctrl-C: local mode stops all in order."""
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
    )


async def _watch(process: "subprocess.Popen[bytes]", child: Child) -> None:
    await process_ended(process.pid)
    code = process.wait()
    if code == EXIT_CONFIG:
        child.refusal = f"the {child.name} refused its configuration; its log says why"
    child.end(describe_exit(code << 8 if code >= 0 else -code))


async def _poll_ready(url: str, child: Child) -> None:
    """Asks GET /ready until it answers 200."""
    while not child.ready.done():
        if await answers_200(url, "/ready"):
            child.ready.set_result(("",))
        else:
            await asyncio.sleep(READY_POLL_S)
