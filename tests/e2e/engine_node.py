"""An engine with its puller in a process of its own, driven over a pipe: to be frozen, over the wire of choice."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from penstock.engine.messages import Wanted
from penstock.engine.sequence import Role
from penstock.protocol import Accepted, Error, GenerateRequest, Peer, Ticket
from tests.e2e.processes import _context, freeze, send_signal, thaw
from tests.engine.harness import Answer, make_engine
from tests.engine.pair import Side, collect_into

DEADLINE_S = 30.0


class EngineNode:
    """What runs in the process."""

    def __init__(self, transport: str, generation: str, num_blocks: int, puller: dict[str, bool]) -> None:
        # Not poisoned: late bytes are to be another prompt's KV, whose wrong tokens nothing but the comparison sees.
        engine = make_engine(num_blocks=num_blocks, poison=False, generation=generation)
        self.side = Side(engine, transport, generation, **puller)
        self.answers: dict[str, Answer] = {}

    def peer(self) -> Peer:
        return self.side.peer

    def prefill(self, request: GenerateRequest) -> list[Ticket]:
        """Computes the prompt and holds its blocks."""
        engine = self.side.engine
        engine.add(request, Role.PREFILL)
        while engine.step():
            pass
        tickets = [output.frame for output in engine.outputs if isinstance(output.frame, Ticket)]
        engine.outputs.clear()
        return tickets

    def pull(self, peer: Peer, request: GenerateRequest, tickets: Sequence[Ticket]) -> None:
        """Starts reading."""
        self.side.engine.add(request, Role.PULL)
        self.side.redeemer.arrived(request.request_id, Accepted(peer.generation, peer))
        for ticket in tickets:
            self.side.redeemer.arrived(request.request_id, ticket)
        self._turn()

    def want(self, request: GenerateRequest) -> Wanted:
        """Admits a request that names a source: what that is to be asked for."""
        self.side.engine.add(request)
        self._turn()
        return self.side.wanted.pop()

    def lookup(self, wanted: Wanted) -> list[Ticket]:
        """As a source."""
        return [self.side.engine.tickets.lookup(wanted.request_id, wanted.hashes)]

    def read(self, peer: Peer, wanted: Wanted, tickets: Sequence[Ticket]) -> None:
        """Starts reading from a source."""
        for frame in (Accepted(peer.generation, peer), *tickets):
            self.side.redeemer.arrived(wanted.request_id, frame)
        self._turn()

    def run_until_ended(self, name: str) -> str:
        """ "done", or the code of the error that ended the request."""
        while True:
            answer = self.answers.get(name, Answer())
            errors = [frame.code for frame in answer.others if isinstance(frame, Error)]
            if errors or answer.done:
                return errors[0] if errors else "done"
            self._turn()

    def begin(self, requests: Sequence[GenerateRequest], num_tokens: int) -> None:
        """Adds requests and runs until the first has so many tokens."""
        for request in requests:
            self.side.engine.add(request)
        while len(self.answers.get(requests[0].request_id, Answer()).tokens.get(0, [])) < num_tokens:
            self._turn()

    def late_blocks(self) -> int:
        return self.side.puller.counters.quarantined_blocks

    def num_free(self) -> int:
        return self.side.engine.pool.num_free

    def let_late_reads_land(self) -> None:
        """Until no read that was given up is in flight."""
        deadline = time.monotonic() + DEADLINE_S
        while self.side.puller._late:
            assert time.monotonic() < deadline, "a late read never ended"
            time.sleep(0.005)

    def finish(self, names: Sequence[str]) -> dict[str, list[int]]:
        """Runs these requests to their end: their tokens."""
        for name in names:
            assert self.run_until_ended(name) == "done"
        return {name: self.answers[name].tokens[0] for name in names}

    def _turn(self) -> None:
        while not self.side.events.empty():
            self.side.redeemer.on_event(self.side.events.get())
        if not self.side.engine.step():
            time.sleep(0.001)
        collect_into(self.answers, self.side.engine)


class Engines(Protocol):
    """Starts engine nodes that end with the block."""

    def __call__(
        self, transport: str, generation: str, environment: dict[str, str], **options: Any
    ) -> "RemoteEngine": ...


class RemoteEngine:
    """The test's end of an engine node."""

    def __init__(self, *arguments: object) -> None:
        self._connection, end = _context.Pipe()
        self._process = _context.Process(target=_main, args=(end, *arguments), daemon=True)
        self._process.start()
        end.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.peer: Peer = self.call("peer")

    def call(self, method: str, *arguments: object) -> Any:
        self._connection.send((method, arguments))
        assert self._connection.poll(DEADLINE_S), f"{method} took too long"
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def freeze(self) -> None:
        freeze(self.pid)

    def thaw(self) -> None:
        thaw(self.pid)

    def kill(self) -> None:
        send_signal(self.pid, signal.SIGKILL)
        self._process.join(DEADLINE_S)
        self._connection.close()


@contextlib.contextmanager
def engines() -> Iterator[Engines]:
    """All nodes are killed at the end, frozen or not."""
    started: list[RemoteEngine] = []

    def start(transport: str, generation: str, environment: dict[str, str], **options: Any) -> RemoteEngine:
        num_blocks = options.pop("num_blocks")
        started.append(RemoteEngine(environment, transport, generation, num_blocks, options))
        return started[-1]

    try:
        yield start
    finally:
        for node in started:
            node.kill()


def _main(connection: Connection, environment: dict[str, str], *arguments: Any) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    node = EngineNode(*arguments)
    while True:
        method, values = connection.recv()
        try:
            connection.send(getattr(node, method)(*values))
        except Exception as error:
            connection.send(error)
