"""Pulls across a silent partition: every packet on loopback is dropped for a while. Prints what happened, as JSON.

Runs in a network namespace of its own: `unshare --net --map-root-user python -m tests.engine.transfer.partition`.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.engine.transfer.node import connected, nodes, wait_until_heard

GIVE_UP_S = 30.0


def run(wires: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """Per wire, events with seconds: of a pull (failed, released; since the partition began), of a second one when all
    reads of the first had ended (since it was asked for), of a third when the partition was over and a read had landed.
    """
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    logs: dict[str, list[tuple[str, float]]] = {wire: [] for wire in wires}
    with nodes() as start:
        pairs = {wire: connected(start, wire, timeout_s=1.0) for wire in wires}
        tickets = {wire: pairs[wire].owner.call("write", range(200)) for wire in wires}
        for wire, (owner, reader) in pairs.items():
            reader.pull(owner, tickets[wire], range(200))
        strangers = {wire: start(wire, "stranger") for wire in wires}
        # A queue of no packets: all are dropped, nobody is told.
        subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", "pfifo", "limit", "0"], check=True)
        began = time.monotonic()
        for wire, (owner, reader) in pairs.items():
            reader.call("add_peer", strangers[wire].peer)  # must hold up nothing, though nobody answers
            reader.submit(owner, tickets[wire], range(200), "a")
        waiting = set(wires)
        while waiting and time.monotonic() - began < GIVE_UP_S:
            for wire in list(waiting):
                event = pairs[wire].reader.call("event", 0.1)
                if event is not None:
                    logs[wire].append((type(event).__name__, time.monotonic() - began))
                    waiting -= {wire} if len(logs[wire]) == 2 else set()
        for wire, (owner, reader) in pairs.items():
            asked = time.monotonic()
            reader.call("add_peer", owner.peer)
            event = reader.pull(owner, tickets[wire], range(200))
            logs[wire].append((type(event).__name__, time.monotonic() - asked))
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=True)
        for wire, (owner, reader) in pairs.items():
            wait_until_heard(reader, owner)
            event = reader.pull(owner, tickets[wire], range(200))
            logs[wire].append((type(event).__name__, time.monotonic() - began))
    return logs


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1:])))
