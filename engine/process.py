"""The engine process: a pipe to the worker's front on one side, the engine on the other.

    inbox (front's messages, puller's events) -> apply -> engine.step -> one batch of outputs to the front

Threads: this loop, one that reads the pipe, one that beats, and the puller's. They meet only in the inbox.
"""

import logging
import os
import threading
import time
import uuid
from multiprocessing.connection import Connection
from queue import SimpleQueue

from msgspec import Struct, structs

from penstock.engine import messages
from penstock.engine.build import build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.engine import Engine
from penstock.engine.feed import Feed
from penstock.engine.messages import Beat, Output, Stats, StepOutputs, Wanted
from penstock.engine.redeem import Redeemer
from penstock.engine.sequence import Role
from penstock.engine.transfer import Event as PullEvent
from penstock.engine.transfer import Puller, PullVerified, Regions, make_transport
from penstock.errors import PrefillDied, PrefillLost, WorkerLost
from penstock.protocol import HEARTBEAT_S, Load, Peer, StepTiming

log = logging.getLogger(__name__)


def run_engine(config: EngineConfig, connection: Connection) -> None:
    """Main function of the engine process: returns when the front says Stop, exits at once when the front is gone.

    Raises ConfigError when it cannot start, WorkerLost when it must start afresh.
    """
    EngineProcess(config, connection).run()


MAX_QUARANTINED = 0.25
"""Part of the pool that may be in quarantine before the worker restarts."""


MANY_ROWS = 64
"""Steps of fewer rows say what a step costs at least, longer ones what a row costs."""


class StepClock:
    """How long the current step lasts and was predicted to last; read by the beating thread.

    A prediction is a fixed part plus a part per row, both on the long side: too short, and a slow worker looks stuck.
    """

    def __init__(self, first_guess_s_per_row: float) -> None:
        self.step = 0
        self._began: float | None = None
        self._predicted_s = 0.0
        self._fixed_s = 0.0
        self._s_per_row = first_guess_s_per_row
        self._measured = False

    def begin(self, max_rows: int) -> None:
        """A step of at most `max_rows` rows begins."""
        self.step += 1
        self._predicted_s = self._fixed_s + max_rows * self._s_per_row
        self._began = time.monotonic()

    def end(self, timing: StepTiming | None) -> None:
        """The step ended; None when there was nothing to compute."""
        self._began = None
        if timing is None:
            return
        rows = timing.prefill_tokens + timing.decode_tokens
        if rows >= MANY_ROWS:
            self._s_per_row = max(timing.seconds / rows, 0.9 * self._s_per_row if self._measured else 0.0)
            self._measured = True
        else:
            self._fixed_s = max(timing.seconds, 0.9 * self._fixed_s)

    def beat(self) -> Beat:
        """Now."""
        began = self._began
        step_s = 0.0 if began is None else time.monotonic() - began
        return Beat(self.step, step_s, self._predicted_s)


class EngineProcess:
    """Wires engine, puller and pipe together and runs the loop."""

    def __init__(self, config: EngineConfig, connection: Connection) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._inbox: SimpleQueue[tuple[Struct, ...] | PullEvent] = SimpleQueue()
        generation = uuid.uuid4().hex
        built = build_engine(config, generation)
        self._engine: Engine = built.engine
        self._engine.announce = self._announce
        regions = Regions(kv=built.engine.runner.kv, epochs=built.engine.pool.epochs)
        transport = make_transport(config.transport, regions, host=config.transfer_host)
        block_bytes = built.engine.runner.layout.block_bytes
        self._puller = Puller(transport, block_bytes, self._take_pull_event, timeout_s=config.transfer_timeout_s)
        self._redeemer = Redeemer(built.engine, built.layout, self._puller, self._ask_source)
        self._clock = StepClock(built.first_guess_s_per_row)
        budget = built.engine.budget
        self._feed = Feed(
            built.engine.pool, budget.block_size, generation, self._load, prefix_cache=budget.prefix_cache
        )
        self._peer = Peer(
            generation=generation,
            layout=built.layout,
            endpoints={transport.name: transport.endpoint},
            num_blocks=built.engine.pool.num_blocks,
        )
        self._started = messages.Started(self._peer, built.limits, transport.name, built.notes)

    def run(self) -> None:
        """Serves until Stop."""
        self._puller.start()
        self._send(self._started)
        threading.Thread(target=self._read, name="pipe", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        idle = True
        while self._apply(wait=idle):
            for part in self._feed.snapshot():
                self._send(StepOutputs(events=part))
            self._clock.begin(self._engine.planned_rows())
            idle = not self._engine.step() and not self._feed.is_behind
            self._clock.end(self._engine.timings[-1] if self._engine.timings else None)
            self._flush()
            self._check_quarantine()
        self._puller.close()

    def _apply(self, *, wait: bool) -> bool:
        """Applies what came in, waiting for the first if there is nothing else to do. False on Stop."""
        while wait or not self._inbox.empty():
            item = self._inbox.get()
            wait = False
            if not isinstance(item, tuple):
                self._redeemer.on_event(item)
                continue
            for message in item:
                if isinstance(message, messages.Stop):
                    return False
                self._dispatch(message)
        return True

    def _dispatch(self, message: Struct) -> None:
        engine = self._engine
        match message:
            case messages.Generate(request, traced):
                engine.add(request, Role.PULL if request.prefill else Role.GENERATE, traced=traced)
            case messages.Prefill(request, traced):
                engine.add(request, Role.PREFILL, traced=traced)
            case messages.Lookup(request_id, hashes, as_of):
                engine.outputs.append(Output(request_id, engine.tickets.lookup(request_id, hashes, as_of)))
            case messages.PeerArrived(request_id, frame):
                self._redeemer.arrived(request_id, frame)
            case messages.PeerFailed(request_id, reason, died):
                self._redeemer.failed(request_id, PrefillDied(reason) if died else PrefillLost(reason))
            case messages.Cancel(request_id):
                engine.cancel(request_id)
            case messages.Snapshot():
                self._feed.subscribe()

    def _flush(self) -> None:
        """One message with all that this round of the loop produced."""
        engine, redeemer = self._engine, self._redeemer
        outputs, engine.outputs = tuple(engine.outputs), []
        released, redeemer.released = tuple(redeemer.released), []
        frames = self._feed.changes(tuple(engine.timings))
        for frame in frames[:-1]:
            self._send(StepOutputs(events=frame))
        events = frames[-1] if frames else None
        engine.timings.clear()
        load, stats, spans = self._load(), self._stats(), engine.spans.drain()
        self._send(StepOutputs(outputs, released, events, load, stats, spans=spans))

    def _ask_source(self, wanted: Wanted) -> None:
        """At once: the source answers while the step of the others runs here."""
        self._send(StepOutputs(wanted=(wanted,)))

    def _announce(self) -> None:
        """What was evicted for this step, while it is computed."""
        for frame in self._feed.changes():
            self._send(StepOutputs(events=frame))

    def _check_quarantine(self) -> None:
        """With too many blocks in quarantine this process ends: its streams go on elsewhere, and it starts afresh."""
        count, total = self._puller.counters.quarantined_blocks, self._engine.pool.num_blocks
        if count > MAX_QUARANTINED * total:
            raise WorkerLost(f"{count} of {total} KV blocks wait for transfers that never ended; starting afresh")

    def _load(self) -> Load:
        return structs.replace(self._engine.load(), quarantined_blocks=self._puller.counters.quarantined_blocks)

    def _stats(self) -> Stats:
        counters = self._puller.counters
        return structs.replace(
            self._engine.stats(),
            pulled_blocks=counters.blocks,
            pulled_bytes=counters.bytes,
            pull_seconds=counters.seconds,
            fenced_pulls=counters.fenced,
            failed_pulls=counters.failed,
            sourced_blocks=self._redeemer.num_sourced_blocks,
            missed_sources=self._redeemer.num_missed_sources,
            silent_peers=len(self._puller.silent),
        )

    def _send(self, message: Struct) -> None:
        with self._send_lock:
            self._connection.send_bytes(messages.encode(message))

    def _take_pull_event(self, event: PullEvent) -> None:
        """Called on the puller's thread."""
        if isinstance(event, PullVerified):
            self._engine.trace("verified", event.request_id.rpartition("/")[0])
        self._inbox.put(event)

    def _read(self) -> None:
        """Thread: the pipe into the inbox. The front's death ends this process: nobody is left to compute for."""
        try:
            while True:
                self._inbox.put(messages.decode_to_engine(self._connection.recv_bytes()))
        except (EOFError, OSError):
            pass  # the front is gone
        except Exception:
            log.exception("a message from the front cannot be read")
        os._exit(1)

    def _beat(self) -> None:
        """Thread: says that this process is alive, whatever the loop is busy with. Without a puller it is not."""
        try:
            while self._puller.crash is None:
                self._send(self._clock.beat())
                time.sleep(HEARTBEAT_S)
        except OSError:
            pass  # the front is gone
        os._exit(1)
