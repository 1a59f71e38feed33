"""Network namespaces joined to the test's own by wires that can lose every packet, without a word to either end."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest


class Island:
    """Each wire is a pair of devices: one here, one on the island."""

    def __init__(self, wires: Sequence[str]) -> None:
        number = os.getpid()
        self.namespace = f"penstock-{number}"
        self._wires = {
            wire: (f"ps{number}{wire}", f"10.{210 + index}.{number % 250}") for index, wire in enumerate(wires)
        }

    def here(self, wire: str) -> tuple[str, str]:
        """(address, device) of this end."""
        device, net = self._wires[wire]
        return f"{net}.1", f"{device}0"

    def there(self, wire: str) -> tuple[str, str]:
        """(address, device) of the island's end."""
        device, net = self._wires[wire]
        return f"{net}.2", f"{device}1"

    def build(self) -> None:
        """Makes namespace and wires."""
        island = f"ip -n {self.namespace}"
        _run(f"ip netns add {self.namespace}")
        _run(f"{island} link set lo up")
        for wire in self._wires:
            (address, device), (far_address, far_device) = self.here(wire), self.there(wire)
            _run(f"ip link add {device} type veth peer name {far_device} netns {self.namespace}")
            _run(f"ip addr add {address}/30 dev {device}")
            _run(f"{island} addr add {far_address}/30 dev {far_device}")
            _run(f"ip link set {device} up")
            _run(f"{island} link set {far_device} up")

    def remove(self) -> None:
        """The wires go with their ends on the island."""
        _run(f"ip netns del {self.namespace}", check=False)
        for wire in self._wires:
            _run(f"ip link del {self.here(wire)[1]}", check=False)

    def partition(self, *wires: str) -> None:
        """From now on these wires lose every packet, in both directions."""
        for wire in wires:
            for command in self._queues(wire, "add"):
                _run(f"{command} root pfifo limit 0")  # a queue that has no room

    def heal(self) -> None:
        """Packets arrive again."""
        for wire in self._wires:
            for command in self._queues(wire, "del"):
                _run(f"{command} root", check=False)

    def _queues(self, wire: str, verb: str) -> tuple[str, str]:
        queue = f"tc qdisc {verb} dev"
        return (
            f"{queue} {self.here(wire)[1]}",
            f"ip netns exec {self.namespace} {queue} {self.there(wire)[1]}",
        )


class Archipelago:
    """A namespace per name, all joined with each other and with the test's own by a bridge; each can be cut off."""

    def __init__(self, names: Sequence[str]) -> None:
        number = os.getpid()
        self._bridge, self._net = f"pb{number}", f"10.209.{number % 250}"
        self._numbers = {name: index for index, name in enumerate(names)}
        self._prefix = f"pa{number}"

    def namespace(self, name: str) -> str:
        return f"penstock-{self._prefix}-{self._numbers[name]}"

    def there(self, name: str) -> tuple[str, str]:
        """(address, device) of an island."""
        return f"{self._net}.{10 + self._numbers[name]}", f"{self._prefix}{self._numbers[name]}i"

    def build(self) -> None:
        """Makes the bridge, the namespaces and their wires."""
        _run(f"ip link add {self._bridge} type bridge")
        _run(f"ip addr add {self._net}.1/24 dev {self._bridge}")
        _run(f"ip link set {self._bridge} up")
        for name in self._numbers:
            island, (address, device), end = self.namespace(name), self.there(name), self._end(name)
            _run(f"ip netns add {island}")
            _run(f"ip -n {island} link set lo up")
            _run(f"ip link add {end} type veth peer name {device} netns {island}")
            _run(f"ip link set {end} master {self._bridge} up")
            _run(f"ip -n {island} addr add {address}/24 dev {device}")
            _run(f"ip -n {island} link set {device} up")

    def remove(self) -> None:
        """The wires go with their ends on the islands."""
        for name in self._numbers:
            _run(f"ip netns del {self.namespace(name)}", check=False)
            _run(f"ip link del {self._end(name)}", check=False)
        _run(f"ip link del {self._bridge}", check=False)

    def partition(self, name: str) -> None:
        """From now on an island's wire loses every packet, in both directions."""
        for command in self._queues(name, "add"):
            _run(f"{command} root pfifo limit 0")

    def heal(self, name: str) -> None:
        """Packets arrive again."""
        for command in self._queues(name, "del"):
            _run(f"{command} root", check=False)

    def _end(self, name: str) -> str:
        """The device at the bridge."""
        return f"{self._prefix}{self._numbers[name]}b"

    def _queues(self, name: str, verb: str) -> tuple[str, str]:
        queue = f"tc qdisc {verb} dev"
        return (
            f"{queue} {self._end(name)}",
            f"ip netns exec {self.namespace(name)} {queue} {self.there(name)[1]}",
        )


@contextmanager
def archipelago(names: Sequence[str]) -> Iterator[Archipelago]:
    """Skips the test where namespaces cannot be made."""
    _need_namespaces()
    made = Archipelago(names)
    try:
        made.build()
        yield made
    finally:
        made.remove()


@contextmanager
def island(*wires: str) -> Iterator[Island]:
    """Skips the test where namespaces cannot be made. A wire's name is a letter."""
    _need_namespaces()
    made = Island(wires)
    try:
        made.build()
        yield made
    finally:
        made.remove()


def _need_namespaces() -> None:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("needs root, ip and tc (apt-get install iproute2) to make network namespaces")


def _run(command: str, *, check: bool = True) -> None:
    subprocess.run(
        command.split(), check=check, stdout=subprocess.DEVNULL, stderr=None if check else subprocess.DEVNULL
    )
