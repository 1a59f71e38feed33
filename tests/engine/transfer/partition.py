"""Pulls across a silent partition: every packet on loopback is dropped for a while. Prints what happened, as JSON.

Runs in a network namespace of its own: `unshare --net --map-root-user python -m tests.engine.transfer.partition WIRE`.
"""

import json
import subprocess
import sys
import time

from tests.engine.transfer.node import connected, nodes

GIVE_UP_S = 30.0


def run(wire: str) -> list[tuple[str, float]]:
    """(event, seconds after the partition began), then the event of a pull after it ended."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    log = []
    with nodes() as start:
        owner, reader = connected(start, wire, timeout_s=1.0)
        tickets = owner.call("write", range(200))
        reader.pull(owner, tickets, range(200))
        # A queue of no packets: all are dropped, nobody is told.
        subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", "pfifo", "limit", "0"], check=True)
        began = time.monotonic()
        reader.submit(owner, tickets, range(200), "a")
        while "QuarantineReleased" not in dict(log) and time.monotonic() - began < GIVE_UP_S:
            event = reader.call("event", 1.0)
            if event is not None:
                log.append((type(event).__name__, time.monotonic() - began))
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=True)
        reader.call("add_peer", owner.peer)
        log.append((type(reader.pull(owner, tickets, range(200))).__name__, time.monotonic() - began))
    return log


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))
