"""The reading side of a transfer: tickets come in, blocks are reserved, pulled and verified, sequences join the batch.

There are two kinds of pulls. A decode worker's prefill worker tickets the whole prompt while it computes it, and its
failure ends the request, which the router places again. Any worker's source tickets what it happens to have cached;
whatever it lacks or loses is computed here. A source is asked only when all blocks are reserved and the answer waits
for no memory, so workers that read from each other cannot wait for each other.

The fence, in order: (a) here, a ticket of another generation, or with hashes other than our own for its positions, is
refused; (b) the puller reads the data; (c) when that is done it reads the epochs; (d) it compares them with the ticket.
Blocks that a lost transfer may still write stay in quarantine until the puller says that nothing can land any more.
"""

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.engine.engine import Engine
from penstock.engine.kv.pool import num_blocks_for
from penstock.engine.messages import Wanted
from penstock.engine.sequence import Request, Role, Sequence
from penstock.engine.transfer import Event, Puller, PullFailed, PullVerified, QuarantineReleased
from penstock.engine.transfer import Pull as BlockPull
from penstock.errors import PrefillLost, RetryableError, TransferError
from penstock.protocol import Accepted, BlockTicket, Layout, Peer, Ticket

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Pull:
    """One request's transfer. The pull, not the sequence, owns the blocks until all are verified."""

    key: str
    request: Request
    peer: Peer | None = None
    blocks: list[int] = field(default_factory=list)
    """Reserved for the tokens, plus one; empty until then."""
    num_matched: int = 0
    """Of them, those that were in the prefix cache here."""
    position_of: dict[int, int] = field(default_factory=dict)
    """Local block that the puller owns -> its position in the sequence."""
    num_ticketed: int = 0
    """Ticketed blocks of the sequence, counted from its first; a source is asked only for those after the matched."""
    last_seen: bool = False
    began: float = 0.0
    """When the reads began that are under way."""
    quarantined: set[int] = field(default_factory=set)
    dropped: bool = False
    """The request has ended; what is left is to give the blocks back."""
    first_read_at: float | None = None
    """By time.monotonic."""

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV the prefill worker computes."""
        return self.request.num_start_tokens

    @property
    def num_positions(self) -> int:
        """Blocks that may be ticketed: all that a prefill worker fills, the last one perhaps partly; a source's are
        full, and the last token is computed here, for its logits."""
        if self.request.role is Role.PULL:
            return num_blocks_for(self.num_tokens, self.request.block_size)
        return (self.num_tokens - 1) // self.request.block_size


class Redeemer:
    """Redeems tickets into the engine's pool."""

    def __init__(self, engine: Engine, layout: Layout, puller: Puller, ask: Callable[[Wanted], None]) -> None:
        """`ask` has a request's source asked; the answer comes as `arrived` or `failed`."""
        self.released: list[str] = []
        """Request ids whose call to the other worker is of no more use; the worker's front closes it."""
        self.num_sourced_blocks = 0
        self.num_missed_sources = 0
        self._ask = ask
        self._engine = engine
        self._layout = layout
        self._puller = puller
        self._pulls: dict[Request, Pull] = {}
        self._by_key: dict[str, Pull] = {}
        self._numbers = itertools.count()
        engine.pulls = self

    def arrived(self, request_id: str, frame: Accepted | Ticket) -> None:
        """A frame of the other worker's stream. Anything invalid ends a prefill worker's request with `prefill_lost`.

        One that answers but cannot be read ends it with `transfer_failed`: others may still read it.
        """
        request = self._reading(request_id)
        if request is None:
            return
        try:
            if isinstance(frame, Accepted):
                self._meet(self._pull_of(request), frame.peer)
            else:
                self._take(self._pull_of(request), frame)
        except (PrefillLost, TransferError) as error:
            self._fail(request, error)

    def failed(self, request_id: str, error: PrefillLost) -> None:
        """The other worker was lost. Does nothing once its blocks are verified."""
        request = self._reading(request_id)
        if request is not None:
            self._fail(request, error)

    @property
    def num_sequences(self) -> int:
        """See engine.Pulls."""
        return sum(pull.request.width for pull in self._pulls.values() if pull.blocks)

    def begin(self, sequence: Sequence, blocks: list[int], num_matched: int) -> None:
        """See engine.Pulls."""
        request = sequence.request
        pull = self._pull_of(request)
        pull.blocks, pull.num_matched = blocks, num_matched
        if request.role is not Role.PULL:
            pull.num_ticketed = num_matched
            hashes = sequence.full_hashes()[num_matched : pull.num_positions]
            self._ask(Wanted(request.wire.request_id, tuple(hashes)))
            return
        for ticket in request.tickets:
            self._submit(pull, ticket, ticket.first_position)
        self._join_if_complete(pull)

    def drop(self, request: Request) -> None:
        """See engine.Pulls."""
        pull = self._pulls.pop(request, None)
        if pull is None:
            return
        pull.dropped = True
        if pull.position_of:
            self._puller.abort(pull.key)
        else:
            self._forget(pull)

    def on_event(self, event: Event) -> None:
        """An event of the puller, on the engine's thread."""
        if isinstance(event, QuarantineReleased):
            self._engine.pool.free(event.local_blocks)
            return
        pull = self._by_key[event.request_id]
        if isinstance(event, PullVerified):
            self._verified(pull, event)
        else:
            self._lost(pull, event)
        if pull.dropped:
            if not pull.position_of:
                self._forget(pull)
        elif isinstance(event, PullFailed):
            self._fail(pull.request, PrefillLost(event.reason))  # drops the pull
        else:
            self._join_if_complete(pull)

    def _reading(self, request_id: str) -> Request | None:
        """The request if it is still to read, or reads, from another worker."""
        request = self._engine.requests.get(request_id)
        if request is not None and (request.role is Role.PULL or request in self._pulls):
            return request
        return None

    def _fail(self, request: Request, error: RetryableError) -> None:
        """A prefill worker's failure ends the request. After a source's it is admitted again, without: it finds in the
        prefix cache what was verified, and computes the rest."""
        if request.role is Role.PULL:
            self._engine.fail(request, error)
            return
        logger.warning("request %s computes what its source was to give: %s", request.wire.request_id, error)
        self.num_missed_sources += 1
        self.drop(request)
        self._engine.queue(request.sequences[0])
        self.released.append(request.wire.request_id)

    def _pull_of(self, request: Request) -> Pull:
        if request not in self._pulls:
            key = f"{request.wire.request_id}/{next(self._numbers)}"
            self._pulls[request] = self._by_key[key] = Pull(key, request)
        return self._pulls[request]

    def _meet(self, pull: Pull, peer: Peer | None) -> None:
        """First frame: compares layouts and introduces the peer to the puller."""
        if peer is None:
            raise PrefillLost("the prefill worker did not say how to read its blocks")
        if peer.layout != self._layout:
            raise PrefillLost(f"KV layouts differ: the prefill worker has {peer.layout}, this worker {self._layout}")
        self._puller.add_peer(peer)  # a silent one too: it is how the puller finds out that it delivers again
        if peer.generation in self._puller.silent:
            raise TransferError("reads from the prefill worker time out, although it answers calls")
        pull.peer = peer

    def _take(self, pull: Pull, ticket: Ticket) -> None:
        """Checks a ticket (fence, a), emits its first tokens and starts its reads if blocks are reserved."""
        request, sequence = pull.request, pull.request.sequences[0]
        if pull.peer is None or ticket.generation != pull.peer.generation:
            raise PrefillLost(f"a ticket of generation {ticket.generation}, which is not the one that accepted")
        # A source counts from the first block that it was asked for.
        first = ticket.first_position + (pull.num_matched if request.role is not Role.PULL else 0)
        if pull.last_seen or first != pull.num_ticketed:
            raise PrefillLost(f"a ticket for position {first} where {pull.num_ticketed} was due")
        pull.num_ticketed += len(ticket.blocks)
        if pull.num_ticketed > pull.num_positions:
            raise PrefillLost(f"tickets for {pull.num_ticketed} blocks of a prompt that fills {pull.num_positions}")
        for position, block in enumerate(ticket.blocks, first):
            if block.hash != sequence.hash_of(position):
                raise PrefillLost(f"a ticket whose hash is not that of block {position} of the prompt")
        if request.role is Role.PULL:
            request.tickets.append(ticket)
            if ticket.last:
                self._take_last(pull, ticket)
        else:
            pull.last_seen = ticket.last
        if pull.blocks and not pull.dropped:
            self._submit(pull, ticket, first)
            self._join_if_complete(pull)

    def _take_last(self, pull: Pull, ticket: Ticket) -> None:
        """First tokens go out at once. If they end every sample, no block needs to move."""
        request = pull.request
        if len(ticket.first_tokens) != len(request.wire.samples):
            raise PrefillLost(f"{len(ticket.first_tokens)} first tokens for {len(request.wire.samples)} samples")
        for first in ticket.first_tokens:
            if first.token >= self._engine.vocab_size:
                raise PrefillLost(f"first token {first.token} of a vocabulary of {self._engine.vocab_size}")
            asked = request.wire.sampling.logprobs
            if (first.logprob is None) != (asked is None) or (first.logprob and len(first.logprob.top) > (asked or 0)):
                raise PrefillLost("a first token without the log-probabilities that were asked for, or with others")
        pull.last_seen = True
        request.cached_tokens = min(ticket.cached_tokens, len(request.prompt))
        request.prefilled_tokens = len(request.prompt) - request.cached_tokens
        self._engine.emit_first_tokens(request, ticket.first_tokens)
        if request.finished:
            self._engine.drop(request)
        elif pull.num_ticketed != pull.num_positions:
            raise PrefillLost(f"tickets for {pull.num_ticketed} blocks of a prompt that fills {pull.num_positions}")

    def _submit(self, pull: Pull, ticket: Ticket, first: int) -> None:
        """Starts the reads of those ticketed blocks, from position `first` on, that are not already here."""
        assert pull.peer is not None
        reads: list[tuple[BlockTicket, int]] = []
        for position, block in enumerate(ticket.blocks, first):
            if position >= pull.num_matched:
                reads.append((block, pull.blocks[position]))
                pull.position_of[pull.blocks[position]] = position
        if reads:
            pull.first_read_at = pull.first_read_at or time.monotonic()
            if len(reads) == len(pull.position_of):
                pull.began = time.monotonic()
                pull.request.pulls += 1
            self._puller.submit(BlockPull(pull.key, pull.peer.generation, reads))

    def _verified(self, pull: Pull, event: PullVerified) -> None:
        """Full blocks enter the prefix cache as they are verified, so that a retry after a loss finds them."""
        request = pull.request
        size, sequence = request.block_size, request.sequences[0]
        request.pulled_blocks += len(event.local_blocks)
        if request.role is not Role.PULL:
            request.sourced_blocks += len(event.local_blocks)
            self.num_sourced_blocks += len(event.local_blocks)
        for block in event.local_blocks:
            position = pull.position_of.pop(block)
            if (position + 1) * size <= pull.num_tokens and self._engine.budget.prefix_cache:
                self._engine.pool.commit(block, sequence.stored_block(position))
        if not pull.position_of:
            pull.request.pull_s += time.monotonic() - pull.began

    def _lost(self, pull: Pull, event: PullFailed) -> None:
        for block in event.local_blocks:
            del pull.position_of[block]
        pull.quarantined.update(event.quarantined)

    def _join_if_complete(self, pull: Pull) -> None:
        if not pull.last_seen or pull.position_of or pull.dropped:
            return
        request = pull.request
        del self._pulls[request]
        del self._by_key[pull.key]
        if pull.first_read_at is not None:
            self._engine.spans.add(request, "transfer", pull.first_read_at, request.pulled_blocks)
        if request.role is Role.PULL:
            self._engine.join(request, pull.blocks, pull.num_tokens)
        else:
            self.num_missed_sources += pull.num_ticketed == pull.num_matched
            self._engine.start(request.sequences[0], pull.blocks, pull.num_ticketed)
        self.released.append(request.wire.request_id)

    def _forget(self, pull: Pull) -> None:
        """Nothing of this pull is in flight any more, except what is in quarantine."""
        del self._by_key[pull.key]
        self._engine.pool.free([block for block in pull.blocks if block not in pull.quarantined])
