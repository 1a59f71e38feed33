"""An operator as a process of the test, behind a proxy: killed at any request, cut off from the API server.

It looks after one namespace. An operator that Helm installed stands aside meanwhile.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

from tests.cluster.kube import Kube, eventually, run

ROOT = Path(__file__).parents[2]


class Proxy:
    """Forwards TCP to the API server, in a thread of its own. TLS passes through."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = True
        self.port = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(5)

    def cut(self) -> None:
        """Every connection breaks and none is made any more."""
        self._loop.call_soon_threadsafe(self._cut)

    def freeze(self) -> None:
        """Connections stay, and nothing passes."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def restore(self) -> None:
        self._open = True
        self._loop.call_soon_threadsafe(self._flowing.set)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def _cut(self) -> None:
        self._open = False
        for writer in self._writers:
            writer.transport.abort()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._flowing, self._stop = asyncio.Event(), asyncio.Event()
        self._flowing.set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        self._cut()
        self._flowing.set()
        await asyncio.sleep(0.1)  # lets the connections end

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._open:
                there, back = await asyncio.open_connection(*self._target)
                self._writers.add(back)
                await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(2**16):
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        sink.transport.abort()


class OwnOperator:
    """One process, or several lives of one."""

    def __init__(self, kubeconfig: Path, namespace: str, log: Path, *, lease: str = "test") -> None:
        self._kubeconfig, self._namespace, self._log, self._lease = kubeconfig, namespace, log, lease
        self._process: subprocess.Popen[bytes] | None = None
        self._keeping = threading.Event()

    def start(self, *instead: str) -> None:
        """`instead` of the plain operator: a module that runs one with a fault of its own, and its arguments."""
        flags = ["--namespace", self._namespace, "--lease-namespace", self._namespace, "--lease-name", self._lease]
        flags += ["--port", "0", "--host", "127.0.0.1", "--verify-transfers", "false"]
        module = ["-m", *(instead or ["penstock.cli"])]
        environment = os.environ | {"KUBECONFIG": str(self._kubeconfig), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        with self._log.open("a") as log:
            command = [sys.executable, *module, "operator", *flags]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)

    def keep_running(self) -> None:
        """As a kubelet does: started anew whenever it ends."""
        self._keeping.set()

        def keep() -> None:
            while self._keeping.is_set():
                if self._process is None or self._process.poll() is not None:
                    self.start()
                time.sleep(0.2)

        threading.Thread(target=keep, daemon=True).start()

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def wait_ended(self, within_s: float = 60) -> int:
        assert self._process is not None
        return self._process.wait(within_s)

    def stop(self) -> None:
        """Lets it give its Lease back."""
        self._keeping.clear()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    @property
    def log(self) -> str:
        return self._log.read_text()


def through(proxy: Proxy, kubeconfig: Path, target: Path) -> Path:
    """A kubeconfig that leads through the proxy."""
    config = yaml.safe_load(kubeconfig.read_text())
    for cluster in config["clusters"]:
        cluster["cluster"]["server"] = f"https://127.0.0.1:{proxy.port}"
    target.write_text(yaml.safe_dump(config))
    return target


def api_address(kubeconfig: Path) -> tuple[str, int]:
    """Host and port of the API server."""
    address = urlparse(yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"])
    return str(address.hostname), address.port or 443


@contextlib.contextmanager
def installed_operators_stand_aside() -> Iterator[None]:
    """Those that Helm installed would do the work of the one under test."""
    found: dict[str, Any] = yaml.safe_load(
        run("kubectl", "get", "deployments", "-A", "-l", "app.kubernetes.io/name=penstock-operator", "-o", "yaml")
    )
    operators = [
        item["metadata"]
        for item in found["items"]
        if "serving.penstock.dev/deployment" not in item["metadata"]["labels"]
    ]
    for item in operators:
        run("kubectl", "-n", item["namespace"], "scale", f"deployment/{item['name']}", "--replicas=0")
        pods = ("get", "pods", "-n", item["namespace"], "-l", "app.kubernetes.io/name=penstock-operator", "-o", "name")
        eventually(lambda pods=pods: run("kubectl", *pods).strip() == "", "the installed operator stops")  # type: ignore[misc]
    try:
        yield
    finally:
        for item in operators:
            run("kubectl", "-n", item["namespace"], "scale", f"deployment/{item['name']}", "--replicas=2")
            run("kubectl", "-n", item["namespace"], "rollout", "status", f"deployment/{item['name']}", "--timeout=90s")


@contextlib.contextmanager
def new_proxy() -> Iterator[Proxy]:
    proxy = Proxy(*api_address(Path(os.environ["KUBECONFIG"])))
    yield proxy
    proxy.stop()


@contextlib.contextmanager
def new_operator(kube: Kube, proxy: Proxy, folder: Path) -> Iterator[OwnOperator]:
    """Not started yet."""
    kubeconfig = through(proxy, Path(os.environ["KUBECONFIG"]), folder / "kubeconfig")
    operator = OwnOperator(kubeconfig, kube.namespace, folder / "operator.log")
    yield operator
    operator.stop()
    print(operator.log[-4000:])
