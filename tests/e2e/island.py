"""A network namespace joined to the test's own by wires that can lose every packet, without a word to either end."""

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


@contextmanager
def island(*wires: str) -> Iterator[Island]:
    """Skips the test where namespaces cannot be made. A wire's name is a letter."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("needs root, ip and tc (apt-get install iproute2) to make network namespaces")
    made = Island(wires)
    try:
        made.build()
        yield made
    finally:
        made.remove()


def _run(command: str, *, check: bool = True) -> None:
    subprocess.run(
        command.split(), check=check, stdout=subprocess.DEVNULL, stderr=None if check else subprocess.DEVNULL
    )
