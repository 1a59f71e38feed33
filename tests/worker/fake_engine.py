"""A scripted engine behind a real worker front: a real process that speaks engine/messages.py over the real pipe.

Run as a program it starts a worker around itself and prints the port when ready. Requests choose a behaviour by their
`salt`: "" answers with ascending tokens, "hang" says nothing, "flood" never stops, "crash" ends the engine process,
"endless" (prefill) never sends the last ticket, "keep" (decode) never releases the worker it reads from. Everything it
receives goes to the test's socket, whose path is --secret.
"""

import os
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection

from msgspec import Struct, json
from msgspec.structs import replace

from penstock.config import Parser
from penstock.engine.config import EngineConfig
from penstock.engine.messages import (
    Beat,
    Cancel,
    Generate,
    Limits,
    Lookup,
    Output,
    PeerArrived,
    PeerFailed,
    Prefill,
    Snapshot,
    Started,
    Stats,
    StepOutputs,
    Stop,
    ToEngine,
    Wanted,
    decode_to_engine,
    encode,
)
from penstock.errors import ModelError
from penstock.protocol import (
    BlockTicket,
    Done,
    Error,
    Events,
    Finished,
    FirstToken,
    GenerateRequest,
    Layout,
    Load,
    Peer,
    StoredBlock,
    Ticket,
    Tokens,
)
from penstock.worker.config import add_worker_flags, worker_config
from penstock.worker.main import run_worker

BLOCK_SIZE = 4
LIMITS = Limits(vocab_size=1000, max_context_tokens=100_000, block_size=BLOCK_SIZE, num_blocks=20_000)
FLOOD_TOKENS = tuple(range(900))
WANTED = (b"one", b"two", b"three")
"""What it asks every source for; with nothing, or when it has come, it goes on as if there were no source."""


class FakeEngine:
    """One step at a time: read what came, let every open request say its next word."""

    def __init__(self, config: EngineConfig, connection: Connection) -> None:
        if config.model == "broken":
            raise ModelError("config.json is missing in broken")
        self.generation = f"generation-{os.getpid()}"
        self._limits = replace(LIMITS, max_context_tokens=config.max_context_tokens or LIMITS.max_context_tokens)
        self._connection = connection
        self._lock = threading.Lock()
        self._journal = socket.socket(socket.AF_UNIX) if config.secret else None
        if self._journal:
            self._journal.connect(config.secret)
        self._generating: dict[str, tuple[GenerateRequest, int]] = {}
        self._prefilling: dict[str, GenerateRequest] = {}
        """Those that wait for their source."""
        self._flooding: set[str] = set()
        self._steps = 0

    def run(self) -> None:
        layout = Layout(
            protocol=1, model="fake", weights_version="1", kv_dtype="f32", groups=((1, 1, 1),), block_size=BLOCK_SIZE
        )
        peer = Peer(generation=self.generation, layout=layout, endpoints={"none": b"here"}, num_blocks=20_000)
        self._send(Started(peer, self._limits, "none"))
        self._note(b"%d" % os.getpid())
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            if self._connection.poll(0.005 if self._generating or self._flooding else None):
                for message in decode_to_engine(self._connection.recv_bytes()):
                    self._note(json.encode(_summary(message)))
                    self._take(message)
            self._step()

    def _take(self, message: ToEngine) -> None:
        match message:
            case Generate(request) if request.salt == "flood":
                self._flooding.add(request.request_id)
            case Generate(request) | Prefill(request) if request.salt == "crash":
                os._exit(9)
            case Generate(request) if request.source is not None and request.prefill is None:
                self._generating[request.request_id] = (request, -1)
                self._send(StepOutputs(wanted=(Wanted(request.request_id, WANTED),)))
            case Generate(request) if request.salt != "hang" and request.prefill is None:
                self._generating[request.request_id] = (request, 0)
            case Generate(request):
                self._generating[request.request_id] = (request, -1)
            case Prefill(request) if request.source is not None:
                self._prefilling[request.request_id] = request
                self._send(StepOutputs(wanted=(Wanted(request.request_id, WANTED),)))
            case Prefill(request) if request.salt != "hang":
                self._send_tickets(request)
            case Lookup(request_id, hashes, _):
                tickets = tuple(BlockTicket(i, 7, value) for i, value in enumerate(hashes))
                self._answer(
                    request_id, Ticket(generation=self.generation, first_position=0, blocks=tickets, last=True)
                )
            case PeerArrived(request_id, Ticket()) | PeerFailed(request_id) if request_id in self._prefilling:
                self._send(StepOutputs(released=(request_id,)))
                self._send_tickets(self._prefilling.pop(request_id))
            case PeerArrived(request_id, Ticket(last=True) as ticket) if request_id in self._generating:
                request, _ = self._generating[request_id]
                if request.salt == "keep":
                    return
                if request.prefill is None:
                    self._send(StepOutputs(released=(request_id,)))
                    self._generating[request_id] = (request, 0)
                    return
                first = tuple(token.token for token in ticket.first_tokens)
                outputs = (Output(request_id, Tokens(0, 0, first)),)
                self._send(StepOutputs(outputs=outputs, released=(request_id,)))
                self._generating[request_id] = (request, 1)
            case PeerFailed(request_id) if (known := self._generating.get(request_id)) and known[0].prefill is None:
                self._generating[request_id] = (known[0], 0)
            case PeerFailed(request_id, reason, died):
                self._generating.pop(request_id, None)
                self._answer(request_id, Error(code="prefill_died" if died else "prefill_lost", message=reason))
            case Cancel(request_id):
                self._generating.pop(request_id, None)
                self._flooding.discard(request_id)
            case Snapshot():
                block = StoredBlock(b"h", b"p", (1, 2, 3, 4))
                self._send(
                    StepOutputs(events=Events(generation=self.generation, sequence=0, snapshot=True, stored=(block,)))
                )
            case Stop():
                sys.exit(0)

    def _step(self) -> None:
        outputs: list[Output] = []
        for request_id, (request, position) in list(self._generating.items()):
            if position < 0:  # waits for tickets, or hangs
                continue
            if position < request.sampling.max_tokens:
                outputs += [
                    Output(request_id, Tokens(sample.index, position, (position,))) for sample in request.samples
                ]
                self._generating[request_id] = (request, position + 1)
            else:
                outputs += [Output(request_id, Finished(sample.index, "length")) for sample in request.samples]
                outputs.append(Output(request_id, Done(cached_tokens=3)))
                del self._generating[request_id]
        outputs += [Output(request_id, Tokens(0, 0, FLOOD_TOKENS)) for request_id in self._flooding for _ in range(8)]
        if outputs:
            self._steps += 1
            load = Load(running=len(self._generating), free_blocks=15_000, num_blocks=20_000)
            stats = Stats(prompt_tokens=10, cached_tokens=3, generated_tokens=self._steps, pulled_blocks=2)
            self._send(StepOutputs(outputs=tuple(outputs), load=load, stats=stats))

    def _send_tickets(self, request: GenerateRequest) -> None:
        blocks = -(-len(request.prompt) // BLOCK_SIZE)
        for position in range(blocks):
            last = position == blocks - 1 and request.salt != "endless"
            ticket = Ticket(
                generation=self.generation,
                first_position=position,
                blocks=(BlockTicket(position, 7, b"%16d" % position),),
                last=last,
                first_tokens=(FirstToken(0),) if last else (),
            )
            self._answer(request.request_id, ticket)

    def _answer(self, request_id: str, frame: Ticket | Error) -> None:
        self._send(StepOutputs(outputs=(Output(request_id, frame),)))

    def _beat(self) -> None:
        while True:
            self._send(Beat(self._steps, 0.0, 0.01))
            time.sleep(0.1)

    def _send(self, message: Struct) -> None:
        with self._lock:
            self._connection.send_bytes(encode(message))

    def _note(self, data: bytes) -> None:
        if self._journal:
            self._journal.sendall(data + b"\n")


def _summary(message: ToEngine) -> dict[str, object]:
    """What the test wants to know of a message."""
    request = getattr(message, "request", message)
    return {
        "kind": type(message).__name__,
        "id": getattr(request, "request_id", ""),
        "frame": type(getattr(message, "frame", None)).__name__,
        "reason": getattr(message, "reason", ""),
        "as_of": getattr(request, "as_of", 0),
        "hashes": [hash_.decode(errors="replace") for hash_ in getattr(message, "hashes", ())],
    }


def run_fake_engine(config: EngineConfig, connection: Connection) -> None:
    FakeEngine(config, connection).run()


if __name__ == "__main__":
    parser = Parser()
    parser.add_argument("role")
    add_worker_flags(parser)
    args = parser.parse_args()
    run_worker(
        worker_config(args.role, args),
        engine_main=run_fake_engine,
        on_ready=lambda _, port: print(f"port {port}", flush=True),
    )
