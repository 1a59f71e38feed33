"""Redeems tickets: reads the ticketed blocks, proves that they were not overwritten, and keeps late bytes from harm.

One thread, many pulls at once. It knows peers, tickets and local block numbers; it knows no sequences and frees no
block: the engine does, when an event tells it to.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from penstock.engine.transfer.pull import Counters, Event, Pull, PullFailed, PullVerified, QuarantineReleased
from penstock.engine.transfer.transport import Read, Transport
from penstock.errors import TransferError
from penstock.protocol import BlockTicket, Peer

logger = logging.getLogger(__name__)

_READ_BYTES = 8 << 20
"""Bytes of one read. Over cma a read runs inside the call that starts it (8 MiB: about 1 ms), and others wait."""

# How long to wait for news while reads are in flight, by the time since the last news: (silent for less than, wait).
# News over tcp wakes the thread by itself; RDMA's must be polled for, and a frozen peer should cost next to nothing.
_WAITS_S = ((0.005, 0.00005), (0.1, 0.001))
_LONG_WAIT_S = 0.005

_IDLE_PEER_S = 600.0
"""A peer unused for longer is forgotten: workers come and go, and connecting again takes 5 ms."""


_Reading: TypeAlias = tuple[Read, tuple[int, ...]]
"""A read in flight and the local blocks it writes to (none for epochs)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Late:
    """A read that nobody waits for. Its blocks are in quarantine until it ends; that it lands is a sign of life."""

    generation: str
    read: Read
    blocks: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class _Active:
    """A pull on its way: some blocks not yet asked for, some in flight, then the epochs."""

    pull: Pull
    submitted: float
    waiting: deque[tuple[BlockTicket, int]] = field(default_factory=deque)
    reading: list[_Reading] = field(default_factory=list)
    epochs: Read | None = None

    @property
    def local_blocks(self) -> tuple[int, ...]:
        return tuple(local for _, local in self.pull.blocks)

    def in_flight(self) -> list[_Reading]:
        return [*self.reading, *([(self.epochs, ())] if self.epochs is not None else [])]


class Puller:
    """The thread that pulls, and through which a NIXL transport serves its peers.

    Every `submit` is answered by exactly one PullVerified or PullFailed, and blocks in quarantine come back in
    QuarantineReleased, one read's at a time.
    """

    def __init__(
        self,
        transport: Transport,
        block_bytes: int,
        on_event: Callable[[Event], None],
        *,
        timeout_s: float = 3.0,
        fence: bool = True,
        quarantine: bool = True,
    ) -> None:
        """`on_event` is called on the puller's thread, and must neither block nor raise.

        `timeout_s`: how long a peer may deliver nothing before its pulls fail. `fence=False` and `quarantine=False` are
        for tests only: they show what goes wrong without.
        """
        self.counters = Counters()
        self.crash: BaseException | None = None
        """Why the thread ended by itself, which is a bug: nothing is served or released, the worker must restart."""
        self.silent: set[str] = set()
        """Peers, by generation, whose pulls fail at once: one timed out, and nothing of the peer has landed since."""
        self._transport = transport
        self._block_bytes = block_bytes
        self._on_event = on_event
        self._timeout_s = timeout_s
        self._fence = fence
        self._quarantine = quarantine
        self._commands: deque[Callable[[], None]] = deque()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._peers: dict[str, Peer] = {}
        self._refused: dict[str, str] = {}
        """Why a peer cannot be read, by generation."""
        self._active: list[_Active] = []
        self._late: list[_Late] = []
        self._met: dict[str, float] = {}
        """When a peer, by generation, last introduced itself."""
        self._news: dict[str, float] = {}
        """When a peer last delivered. Meeting it again is no news: it may answer calls, but no reads."""
        self._last_news = 0.0
        self._thread = threading.Thread(target=self._run, name="puller", daemon=True)

    def start(self) -> None:
        """Starts the thread; from now on it alone uses the transport."""
        self._thread.start()

    def add_peer(self, peer: Peer) -> None:
        """Makes a peer's tickets redeemable. Free for a known peer: call it whenever a peer introduces itself."""
        self._tell(lambda: self._add_peer(peer))

    def submit(self, pull: Pull) -> None:
        """Starts one pull."""
        active = _Active(pull, time.monotonic())
        self._tell(lambda: self._start(active))

    def abort(self, request_id: str) -> None:
        """Fails those of the request's pulls that have not ended."""
        self._tell(lambda: self._abort(request_id))

    def close(self) -> None:
        """Fails what is under way, ends the thread and closes the transport."""
        if self._wakeup < 0:
            return
        self._closing = True
        os.eventfd_write(self._wakeup, 1)
        if self._thread.ident is not None:
            self._thread.join()
        self._transport.close()
        os.close(self._wakeup)
        self._wakeup = -1

    def _tell(self, command: Callable[[], None]) -> None:
        if self.crash is not None or self._closing:
            raise TransferError(f"the puller has ended: {self.crash or 'closed'}")
        self._commands.append(command)
        os.eventfd_write(self._wakeup, 1)

    # All below runs on the thread.

    def _run(self) -> None:
        reason = "the worker is closing"
        try:
            while not self._closing:
                while self._commands:
                    self._commands.popleft()()
                self._transport.progress()
                for active in list(self._active):
                    self._advance(active)
                self._poll_late()
                self._wait()
        except BaseException as error:
            logger.exception("the puller crashed")
            self.crash = error
            reason = f"the puller crashed: {error}"
        for active in list(self._active):
            self._fail(active, reason)

    def _add_peer(self, peer: Peer) -> None:
        now = time.monotonic()
        busy = {active.pull.generation for active in self._active} | {late.generation for late in self._late}
        for idle in [one for one, at in self._met.items() if now - at > _IDLE_PEER_S and one not in busy]:
            self._forget_peer(idle)
        self._met[peer.generation] = now
        self._peers[peer.generation] = peer
        self._refused.pop(peer.generation, None)
        try:
            endpoint = peer.endpoints.get(self._transport.name)
            if endpoint is None:
                offers = ", ".join(peer.endpoints) or "nothing"
                raise TransferError(f"peer {peer.generation} offers {offers}, this worker uses {self._transport.name}")
            self._transport.connect(peer.generation, endpoint)
            if peer.generation in self.silent and peer.generation not in busy:
                # No read is left that could tell when it delivers again: one that writes to no block finds out.
                self._late.append(_Late(peer.generation, self._transport.read_epochs(peer.generation, 0, 1)))
        except TransferError as error:
            self._refused[peer.generation] = str(error)

    def _forget_peer(self, generation: str) -> None:
        self._peers.pop(generation, None)
        self._refused.pop(generation, None)
        self._met.pop(generation, None)
        self._news.pop(generation, None)
        self.silent.discard(generation)
        self._transport.disconnect(generation)

    def _start(self, active: _Active) -> None:
        self._active.append(active)
        active.waiting.extend(active.pull.blocks)
        self._last_news = max(self._last_news, active.submitted)
        try:
            self._check(active.pull)
        except TransferError as error:
            self._fail(active, str(error))
        else:
            if not active.pull.blocks:
                self._verified(active)

    def _abort(self, request_id: str) -> None:
        for active in [one for one in self._active if one.pull.request_id == request_id]:
            self._fail(active, "aborted")

    def _check(self, pull: Pull) -> None:
        """Raises TransferError for a pull that cannot be read."""
        peer = self._peers.get(pull.generation)
        if peer is None:
            raise TransferError(f"peer {pull.generation} is unknown")
        if pull.generation in self._refused:
            raise TransferError(self._refused[pull.generation])
        self._check_delivers(pull.generation)
        for ticket, _ in pull.blocks:
            if not 0 <= ticket.block < peer.num_blocks:
                raise TransferError(
                    f"peer {pull.generation} has {peer.num_blocks} blocks; a ticket names block {ticket.block}"
                )

    def _check_delivers(self, generation: str) -> None:
        """Raises TransferError for a silent peer."""
        if generation in self.silent:
            raise TransferError(f"peer {generation} let a pull time out and has delivered nothing since")

    def _advance(self, active: _Active) -> None:
        """One turn of one pull: ask for more blocks, look for what has landed, then for the epochs."""
        try:
            if active.waiting:
                self._read_more(active)
            if self._collect(active):
                self._verified(active)
                return
            generation = active.pull.generation
            self._check_delivers(generation)
            heard = max(active.submitted, self._news.get(generation, 0.0))
            if time.monotonic() - heard > self._timeout_s:
                self.silent.add(generation)
                logger.warning("peer %s is not read from until something of it lands: a pull timed out", generation)
                raise TransferError(f"peer {generation} delivered nothing for {self._timeout_s:g} s")
        except TransferError as error:
            self._fail(active, str(error))

    def _read_more(self, active: _Active) -> None:
        count = max(1, _READ_BYTES // self._block_bytes)
        blocks = [active.waiting.popleft() for _ in range(min(count, len(active.waiting)))]
        read = self._transport.read_blocks(active.pull.generation, [(ticket.block, local) for ticket, local in blocks])
        active.reading.append((read, tuple(local for _, local in blocks)))

    def _collect(self, active: _Active) -> bool:
        """True when every block has landed and every epoch is still the ticket's."""
        for one in list(active.reading):
            if self._poll(active, one[0]):
                active.reading.remove(one)
        if active.waiting or active.reading:
            return False
        tickets = [ticket for ticket, _ in active.pull.blocks]
        first = min(ticket.block for ticket in tickets)
        if active.epochs is None:
            # Only now that every byte is here: an unchanged epoch proves that what was read is what was ticketed.
            count = max(ticket.block for ticket in tickets) - first + 1
            active.epochs = self._transport.read_epochs(active.pull.generation, first, count)
        if not self._poll(active, active.epochs):
            return False
        epochs, active.epochs = active.epochs.epochs, None
        assert epochs is not None
        stale = [ticket.block for ticket in tickets if int(epochs[ticket.block - first]) != ticket.epoch]
        if stale and self._fence:
            self.counters.fenced += 1
            raise TransferError(f"peer {active.pull.generation} reused block {stale[0]} after giving its ticket")
        return True

    def _poll(self, active: _Active, read: Read) -> bool:
        """As `Read.poll`; a read that raised is no longer in flight."""
        try:
            done = read.poll()
        except TransferError:
            active.reading = [one for one in active.reading if one[0] is not read]
            active.epochs = None if active.epochs is read else active.epochs
            raise
        if done:
            self._heard(active.pull.generation)
        return done

    def _heard(self, generation: str) -> None:
        """A read of this peer has landed."""
        self._last_news = self._news[generation] = time.monotonic()
        if generation in self.silent:
            self.silent.remove(generation)
            logger.warning("peer %s delivers again", generation)

    def _verified(self, active: _Active) -> None:
        self._active.remove(active)
        self.counters.blocks += len(active.pull.blocks)
        self.counters.bytes += len(active.pull.blocks) * self._block_bytes
        self.counters.seconds += time.monotonic() - active.submitted
        self._on_event(PullVerified(active.pull.request_id, active.local_blocks))

    def _fail(self, active: _Active, reason: str) -> None:
        self._active.remove(active)
        self.counters.failed += 1
        in_flight = active.in_flight()
        if not self._quarantine:
            in_flight = [(read, ()) for read, _ in in_flight]
        quarantined = tuple(block for _, blocks in in_flight for block in blocks)
        self._late += [_Late(active.pull.generation, read, blocks) for read, blocks in in_flight]
        self.counters.quarantined_blocks += len(quarantined)
        self._on_event(PullFailed(active.pull.request_id, reason, active.local_blocks, quarantined))

    def _poll_late(self) -> None:
        for late in list(self._late):
            try:
                if not late.read.poll():
                    continue
                self._heard(late.generation)
            except TransferError:
                pass  # nothing more can land
            self._late.remove(late)
            self.counters.quarantined_blocks -= len(late.blocks)
            if late.blocks:
                self._on_event(QuarantineReleased(late.blocks))

    def _wait(self) -> None:
        """Until a command or bytes arrive; with reads in flight, not for long."""
        wait_s = self._transport.idle_s
        if any(active.waiting for active in self._active):
            wait_s = 0.0
        elif self._active or self._late:
            silent_s = time.monotonic() - self._last_news
            wait_s = next((wait for limit, wait in _WAITS_S if silent_s < limit), _LONG_WAIT_S)
        # select, not poll: it alone counts in less than milliseconds.
        ready, _, _ = select.select([self._wakeup, self._transport.fileno()], [], [], wait_s)
        if self._wakeup in ready:
            os.eventfd_read(self._wakeup)
