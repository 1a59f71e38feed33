"""Engines in one process, joined by a real transport and the real puller: a prefill and a decode worker, or sources."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import TracebackType

from penstock.engine.engine import Engine
from penstock.engine.messages import Wanted
from penstock.engine.redeem import Redeemer
from penstock.engine.sequence import Role
from penstock.engine.transfer import Event, Puller, Regions, make_transport
from penstock.protocol import VERSION, Accepted, Error, GenerateRequest, Layout, Peer, Ticket
from tests.engine.harness import GENERATION, Answer, collect, make_engine

DEADLINE_S = 20.0


class Side:
    """One worker's engine with its transport."""

    def __init__(self, engine: Engine, transport: str, generation: str, **puller: bool) -> None:
        self.engine = engine
        layout = engine.runner.layout
        self.layout = Layout(
            protocol=VERSION,
            model="tiny",
            weights_version="1",
            kv_dtype=str(layout.dtype),
            groups=((layout.num_layers, layout.num_kv_heads, layout.head_dim),),
            block_size=layout.block_size,
        )
        self.transport = make_transport(transport, Regions(engine.runner.kv, engine.pool.epochs))
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.puller = Puller(self.transport, layout.block_bytes, self.events.put, timeout_s=3.0, **puller)
        self.wanted: list[Wanted] = []
        """What sources are to be asked for, and have not been."""
        self.redeemer = Redeemer(engine, self.layout, self.puller, self.wanted.append)
        self.peer = Peer(
            generation=generation,
            layout=self.layout,
            endpoints={self.transport.name: self.transport.endpoint},
            num_blocks=engine.pool.num_blocks,
        )
        self.puller.start()


@dataclass
class Result:
    """What the pair made of its requests."""

    answers: dict[str, Answer] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)


class Pair:
    """P and D. `on_tickets(request id, ticket)` may hold a ticket back by returning False (it is asked again)."""

    def __init__(
        self, transport: str = "tcp", *, prefill: Engine | None = None, decode: Engine | None = None, **puller: bool
    ) -> None:
        self.prefill = Side(prefill or make_engine(), transport, GENERATION)
        self.decode = Side(decode or make_engine(), transport, "generation-of-decode", **puller)
        self.on_ticket: Callable[[str, Ticket], bool] = lambda _name, _ticket: True
        self._held: list[tuple[str, Ticket]] = []

    def __enter__(self) -> "Pair":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.decode.puller.close()
        self.prefill.puller.close()

    def run(self, *requests: GenerateRequest) -> Result:
        """Prefills on P, decodes on D, until every request is answered or lost."""
        for each in requests:
            self.decode.engine.add(each, Role.PULL)
            self.decode.redeemer.arrived(each.request_id, Accepted(GENERATION, self.prefill.peer))
            self.prefill.engine.add(each, Role.PREFILL)
        return self.pump({each.request_id for each in requests})

    def pump(self, names: set[str]) -> Result:
        """Steps both engines and carries tickets until all of `names` ended."""
        result = Result()
        open_names = set(names)
        deadline = time.monotonic() + DEADLINE_S
        while open_names:
            assert time.monotonic() < deadline, f"not answered: {sorted(open_names)}"
            self.step()
            for name, answer in collect_into(result.answers, self.decode.engine).items():
                errors = [frame for frame in answer.others if isinstance(frame, Error)]
                if errors:
                    assert errors[0].code in ("prefill_lost", "transfer_failed"), errors[0]
                    result.lost.add(name)
                if errors or answer.done:
                    open_names.discard(name)
                    self.prefill.engine.cancel(name)  # the caller closes its prefill call
        return result

    def step(self) -> None:
        """One step on each side, tickets and events carried over."""
        computed = self.prefill.engine.step()
        outputs, self.prefill.engine.outputs = self.prefill.engine.outputs, []
        self._held += [(out.request_id, out.frame) for out in outputs if isinstance(out.frame, Ticket)]
        for name, ticket in list(self._held):
            if self.on_ticket(name, ticket):
                self._held.remove((name, ticket))
                self.decode.redeemer.arrived(name, ticket)
        computed += self.decode.engine.step()
        released, self.decode.redeemer.released = self.decode.redeemer.released, []
        for name in released:
            self.prefill.engine.cancel(name)  # the caller closes its prefill call
        try:
            while True:
                self.decode.redeemer.on_event(self.decode.events.get(timeout=0.0 if computed else 0.005))
                computed = 1
        except Empty:
            pass


def collect_into(answers: dict[str, Answer], engine: Engine) -> dict[str, Answer]:
    """Merges new frames into `answers` and returns those that got some."""
    fresh = collect(engine)
    for name, answer in fresh.items():
        known = answers.setdefault(name, Answer())
        for sample, tokens in answer.tokens.items():
            known.tokens.setdefault(sample, []).extend(tokens)
        known.reasons |= answer.reasons
        known.done = answer.done or known.done
        known.others += answer.others
    return {name: answers[name] for name in fresh}
