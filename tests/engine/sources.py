"""Engines in one process that read from each other's caches by hash, through a real transport and the real puller."""

import time
from collections.abc import Callable
from queue import Empty
from types import TracebackType

from penstock.engine.engine import Engine
from penstock.engine.messages import Wanted
from penstock.engine.sequence import Role
from penstock.protocol import Accepted, Error, GenerateRequest, Ticket
from tests.engine.harness import Answer
from tests.engine.pair import DEADLINE_S, Side, collect_into

Reply = Callable[["Sources", str, Wanted, Side], None]


class Sources:
    """Workers by name. A request's `source` is such a name; `reply` may answer in the source's place."""

    def __init__(self, transport: str = "tcp", *, fence: bool = True, **engines: Engine) -> None:
        """An engine's generation is its name."""
        self.sides = {name: Side(engine, transport, name, fence=fence) for name, engine in engines.items()}
        self.answers: dict[str, Answer] = {}
        self.reply: Reply = Sources.tell
        self.most_held = 0

    def __enter__(self) -> "Sources":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for side in self.sides.values():
            side.puller.close()

    def engine(self, name: str) -> Engine:
        return self.sides[name].engine

    def answer(self, reader: str, *requests: GenerateRequest, role: Role = Role.GENERATE) -> dict[str, Answer]:
        """Has one worker answer the requests (or hold their last tickets)."""
        return self.answer_all({reader: list(requests)}, role)

    def answer_all(self, requests: dict[str, list[GenerateRequest]], role: Role = Role.GENERATE) -> dict[str, Answer]:
        """Steps all workers until every request has its last frame. Nobody may have been failed."""
        for name, some in requests.items():
            for each in some:
                self.engine(name).add(each, role)
        names = [each.request_id for some in requests.values() for each in some]
        deadline = time.monotonic() + DEADLINE_S
        while unanswered := [name for name in names if not self._has_ended(name)]:
            assert time.monotonic() < deadline, f"not answered: {unanswered}"
            self.step()
        return {name: self.answers[name] for name in names}

    def step(self) -> None:
        """One step of each worker, with the calls to sources carried over."""
        for name, side in self.sides.items():
            busy = side.engine.step()
            collect_into(self.answers, side.engine)
            while side.wanted:
                wanted = side.wanted.pop()
                source = side.engine.requests[wanted.request_id].wire.source
                assert source is not None
                self.reply(self, name, wanted, self.sides[source])
            try:
                while True:
                    side.redeemer.on_event(side.events.get(timeout=0.0 if busy else 0.002))
                    busy = True
            except Empty:
                pass
            for request_id in side.redeemer.released:
                self.close_call(request_id)
            side.redeemer.released.clear()

    def tell(self, reader: str, wanted: Wanted, source: Side) -> None:
        """What the source answers."""
        ticket = source.engine.tickets.lookup(wanted.request_id, wanted.hashes)
        self.most_held = max(self.most_held, source.engine.pool.num_held)
        self.carry(reader, wanted, source, ticket)

    def carry(self, reader: str, wanted: Wanted, source: Side, ticket: Ticket) -> None:
        """The two frames of the call."""
        redeemer = self.sides[reader].redeemer
        redeemer.arrived(wanted.request_id, Accepted(source.peer.generation, source.peer))
        redeemer.arrived(wanted.request_id, ticket)

    def close_call(self, request_id: str) -> None:
        """Ends the lease, wherever it is."""
        for side in self.sides.values():
            side.engine.tickets.end_lookup(request_id)

    def _has_ended(self, name: str) -> bool:
        answer = self.answers.get(name, Answer())
        errors = [frame for frame in answer.others if isinstance(frame, Error)]
        assert not errors, errors
        return answer.done is not None or any(isinstance(frame, Ticket) and frame.last for frame in answer.others)
