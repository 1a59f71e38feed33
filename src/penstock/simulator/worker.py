"""One simulated worker: the engine's loop around the engine's own `schedule` and `BlockPool`, with modelled seconds.

A prefill worker publishes what it has computed; the decode worker reads it while the next chunk is computed, and the
first token goes out with the last ticket (docs/explanation/one-request.md). Steps in which all sequences only decode
are the same until one ends, needs a block, or something arrives: they are taken as one span.
"""

import math
from bisect import insort
from collections.abc import Callable

from penstock.engine.kv.ledger import Ledger
from penstock.engine.kv.pool import BlockPool
from penstock.engine.scheduler import Budget, Plan, schedule
from penstock.engine.sequence import Role
from penstock.protocol import Load, Ticket
from penstock.router.placement.costs import attention_pairs
from penstock.simulator.call import Call, Report
from penstock.simulator.clock import Clock, Event
from penstock.simulator.kinds import WorkerKind
from penstock.simulator.links import Port
from penstock.simulator.pulls import Pulls
from penstock.simulator.sequence import SimulatedSequence
from penstock.simulator.span import MAX_SPAN_STEPS, Span
from penstock.simulator.trace import BLOCK_TOKENS

_TICKET = Ticket(generation="", first_position=0, blocks=())


class Worker:
    """A process that can compute prompts, hand out their KV, read others' KV and decode: its role is only a default."""

    def __init__(
        self, url: str, kind: WorkerKind, clock: Clock, hop_s: float, on_report: Callable[["Worker", Report], None]
    ) -> None:
        self.url = url
        self.kind = kind
        self.port = Port(kind.link_bytes_s, kind.link_latency_s)
        self.busy_s = 0.0
        self.num_preemptions = 0
        self._clock = clock
        self._hop_s = hop_s
        self._on_report = on_report
        self._budget = Budget(kind.step_tokens, kind.max_sequences, BLOCK_TOKENS)
        self.start()

    def start(self) -> None:
        """A new process: nothing cached, nothing running."""
        self.up = True
        self.pool = BlockPool(self.kind.num_blocks)
        self.ledger = Ledger(self.pool, BLOCK_TOKENS)
        self.calls: set[Call] = set()
        self._waiting: list[SimulatedSequence] = []
        self._running: list[SimulatedSequence] = []
        self._call_of: dict[SimulatedSequence, Call] = {}
        self._pulls = Pulls(self, self._clock, self._hop_s)
        self._waiting_tokens = 0
        """To be computed here, of those who wait."""
        self._span: Span | None = None
        self._begin_event: Event | None = None
        self._changed = True
        """Whether something happened since the last plan was made, so that the next one may be another."""

    def stop(self) -> set[Call]:
        """The process dies, with the step it is in. Returns the calls that die with it: not those that have ended, nor
        those whose decode worker has read all that this one computed."""
        self.up = False
        span = self._span
        if span is not None:
            span.end.cancel()
            whole_steps = int((self._clock.now_s - span.began_s) / span.step_s)
            if span.steps > 1 and whole_steps:
                for sequence, _ in span.plan.work:
                    if sequence in self._call_of:  # else given up while it was computed
                        self._call_of[sequence].caller.produced(whole_steps)
        if self._begin_event is not None:
            self._begin_event.cancel()
        self._span = self._begin_event = None
        calls = {call for call in self.calls if not call.over and (call.decode is self or not call.has_joined)}
        self.calls = set()
        for call in calls:
            call.over = True
        return calls

    # What arrives.

    def generate(self, call: Call) -> None:
        """`/generate`: computes the prompt here, or has the prefill worker compute it."""
        if not self._meet(call):
            return
        role = Role.GENERATE if call.prefill is None else Role.PULL
        call.on_decode = self._sequence(call, role)
        if call.prefill is None:
            self._queue(call.on_decode)
        else:
            prefill = call.prefill
            self._clock.after(self._hop_s, lambda: prefill.prefill(call))

    def prefill(self, call: Call) -> None:
        """`/prefill`: computes the prompt and holds its blocks until `release`."""
        if not call.over and self._meet(call):
            call.on_prefill = self._sequence(call, Role.PREFILL)
            self._queue(call.on_prefill)

    def release(self, call: Call) -> None:
        """The decode worker has read everything, or is gone."""
        if call.on_prefill is not None and call in self.calls:
            self._drop(call.on_prefill)
            self.calls.discard(call)
            self.wake()

    def ticket(self, call: Call, tokens: int, last: bool) -> None:
        """The prefill worker has published the KV of the first `tokens` tokens."""
        sequence = call.on_decode
        if call.over or sequence is None or not self.up:
            return
        if not sequence.request.tickets:
            sequence.request.tickets.append(_TICKET)
            insort(self._waiting, sequence, key=lambda each: each.request.rank)
        call.ticketed = tokens
        if last:
            sequence.grow(1)
            call.first_sent = True
            call.caller.first_token(call.cached_tokens)
            if sequence.num_left == 0:
                self._finish(sequence)
        if sequence.blocks and not call.over:
            self._pulls.read(call)
        self.wake()

    def abandon(self, call: Call) -> None:
        """The prefill worker was lost: the router places this request again."""
        if call.on_decode is not None and call in self.calls:
            call.over = True
            self._drop(call.on_decode)
            self.calls.discard(call)
            self.wake()

    # What it does with it.

    def _meet(self, call: Call) -> bool:
        if not self.up:
            call.over = True
            self._clock.after(self._hop_s, lambda: call.caller.lost(self))
            return False
        self.calls.add(call)
        return True

    def _sequence(self, call: Call, role: Role) -> SimulatedSequence:
        sequence = SimulatedSequence(call.trace, role, BLOCK_TOKENS, call.start_tokens)
        sequence.request.source = call.source.url if call.source is not None and role is not Role.PULL else None
        self._call_of[sequence] = call
        return sequence

    def _queue(self, sequence: SimulatedSequence) -> None:
        self._waiting_tokens += sequence.num_pending
        self.ledger.want(sequence)
        insort(self._waiting, sequence, key=lambda each: each.request.rank)
        self.wake()

    def _unqueue(self, sequence: SimulatedSequence) -> None:
        self._waiting.remove(sequence)
        if sequence.request.role is not Role.PULL:
            self._waiting_tokens -= sequence.num_pending
        self.ledger.unwant(sequence)

    def wake(self) -> None:
        """Something has changed: the next step may be another one, and begins when the present one ends."""
        self._changed = True
        span = self._span
        if not self.up:
            return
        if span is None:
            if self._begin_event is None:
                self._begin_event = self._clock.after(0.0, self._begin)
        elif span.steps > 1:
            begun = max(1, math.ceil((self._clock.now_s - span.began_s) / span.step_s - 1e-9))
            if begun < span.steps:
                span.end.cancel()
                span.take(begun)
                span.end = self._clock.at(span.end_s, self._end)

    def _begin(self, plan: Plan | None = None) -> None:
        """As Engine.step: plans, preempts, admits, makes room, computes. `plan` was the last one."""
        self._begin_event = None
        if self._span is not None:  # something arrived while the last step was being planned
            return
        if plan is None or self._changed or self._needs(plan) > self.pool.num_free:
            self._changed = False
            pulling = self._pulls.num_sequences
            plan = schedule(self._running, self._waiting, self.pool, self._budget, num_pulling=pulling)
            for victim in plan.preempt:
                self._preempt(victim)  # type: ignore[arg-type]
            for _, matched in (*plan.admit, *plan.pull):
                self.pool.acquire(matched)
            for sequence, matched in plan.pull:
                self._begin_pull(sequence, matched)  # type: ignore[arg-type]
            for sequence, matched in plan.admit:
                self._admit(sequence, matched)  # type: ignore[arg-type]
        if not plan.work:
            if plan.preempt:
                self.wake()
            return
        for sequence, rows in plan.work:
            self.ledger.grow(sequence, sequence.num_computed + rows)
        self._span = self._new_span(plan)
        self._span.end = self._clock.at(self._span.end_s, self._end)

    def _needs(self, plan: Plan) -> int:
        """Blocks that the next step of an unchanged plan takes."""
        return sum(sequence.num_computed + rows > len(sequence.blocks) * BLOCK_TOKENS for sequence, rows in plan.work)

    def _new_span(self, plan: Plan) -> Span:
        prefill = pairs = decode = context = 0
        steps = MAX_SPAN_STEPS
        for sequence, rows in plan.work:
            computed = sequence.num_computed
            if sequence.num_pending > 1 or not sequence.output:
                prefill += rows
                pairs += attention_pairs(computed + rows, computed)
                steps = 1
            else:
                decode += 1
                context += computed + 1
                left = sequence.num_left  # type: ignore[attr-defined]
                steps = min(steps, left, len(sequence.blocks) * BLOCK_TOKENS - computed)
        span = Span(plan, self._clock.now_s, self.kind.step, prefill, pairs, decode, context)
        span.take(steps)
        return span

    def _end(self) -> None:
        """As Engine._advance: what was computed enters the cache, is published, or is a token."""
        span = self._span
        assert span is not None
        self._span = None
        self._changed |= span.prefill_tokens > 0
        self.busy_s += span.steps * span.step_s
        for sequence, rows in span.plan.work:
            if sequence not in self._call_of:
                continue  # given up while it was computed
            self._advance(sequence, rows if rows > 1 else span.steps)
        self._tell(span)
        if self._span is None and self._begin_event is None:
            self._begin(span.plan)

    def _advance(self, sequence: SimulatedSequence, rows: int) -> None:
        call = self._call_of[sequence]
        is_prompt = sequence.num_pending > 1 or not sequence.output
        sequence.num_computed += rows
        self.ledger.commit(sequence)
        if sequence.num_pending > 0:
            if sequence.request.role is Role.PREFILL:
                self._publish(call, sequence.num_computed // BLOCK_TOKENS * BLOCK_TOKENS)
            return
        self.sampled(call, sequence, 1 if is_prompt else rows)

    def sampled(self, call: Call, sequence: SimulatedSequence, count: int) -> None:
        """Everything of `sequence` is computed, and `count` tokens more are known."""
        if sequence.request.role is Role.PREFILL:  # its first token goes out with the last ticket
            self._running.remove(sequence)
            self._changed = True
            self._publish(call, call.start_tokens, last=True)
            return
        sequence.grow(count)
        if not call.first_sent:
            call.first_sent = True
            call.caller.first_token(call.cached_tokens)
        else:
            call.caller.produced(count)
        if sequence.num_left == 0:
            self._finish(sequence)

    def _admit(self, sequence: SimulatedSequence, matched: list[int]) -> None:
        self._reserve(sequence, matched, sequence.num_tokens)
        self.run(sequence, len(matched))

    def _begin_pull(self, sequence: SimulatedSequence, matched: list[int]) -> None:
        """Reserves all blocks, then reads."""
        call = self._call_of[sequence]
        pull = sequence.request.role is Role.PULL
        self._reserve(sequence, matched, call.start_tokens + 1 if pull else sequence.num_tokens)
        self._pulls.begin(call, sequence, len(matched))

    def _reserve(self, sequence: SimulatedSequence, matched: list[int], num_tokens: int) -> None:
        """Takes a sequence from the waiting list and gives it blocks for `num_tokens`; the matched ones are its own."""
        self._unqueue(sequence)
        sequence.request.source = None
        sequence.blocks = self.ledger.reserve(sequence, matched, num_tokens)

    def run(self, sequence: SimulatedSequence, num_cached: int) -> None:
        """The rest of the prompt is computed from the next step on: the first `num_cached` blocks have their KV."""
        call = self._call_of[sequence]
        cached = num_cached * BLOCK_TOKENS
        sequence.num_computed, sequence.num_committed = cached, num_cached
        if not sequence.output:
            call.cached_tokens = min(cached, call.trace.prompt_tokens)
        self._running.append(sequence)
        if sequence.request.role is Role.PREFILL and num_cached:
            self._publish(call, cached)

    def join(self, sequence: SimulatedSequence) -> None:
        """All KV of its prompt is here: it decodes from the next step on."""
        call = self._call_of[sequence]
        sequence.request.role = Role.GENERATE
        sequence.num_computed = call.start_tokens
        self.ledger.commit(sequence)
        self._running.append(sequence)
        self._release_prefill(call)
        self.wake()

    def _publish(self, call: Call, tokens: int, *, last: bool = False) -> None:
        self._clock.after(self._hop_s, lambda: call.decode.ticket(call, tokens, last))

    def _finish(self, sequence: SimulatedSequence) -> None:
        call = self._call_of[sequence]
        if sequence.request.role is Role.PULL:
            self._release_prefill(call)
        call.over = True
        self.calls.discard(call)
        self._drop(sequence)
        self._changed = True
        call.caller.finished()

    def _release_prefill(self, call: Call) -> None:
        if call.prefill is not None:
            prefill = call.prefill
            self._clock.after(self._hop_s, lambda: prefill.release(call))

    def _preempt(self, sequence: SimulatedSequence) -> None:
        self.num_preemptions += 1
        self._running.remove(sequence)
        self.ledger.free(sequence)
        self._queue(sequence)

    def _drop(self, sequence: SimulatedSequence) -> None:
        """Takes a sequence out of all queues and frees its blocks."""
        if sequence in self._waiting:
            self._unqueue(sequence)
        elif sequence in self._running:
            self._running.remove(sequence)
        self._pulls.drop(sequence)
        self.ledger.free(sequence)
        del self._call_of[sequence]

    def _tell(self, span: Span) -> None:
        stored, removed = self.pool.drain_events()
        self._on_report(self, Report(stored, removed, self.load(), (span.timing,)))

    def load(self) -> Load:
        """As Engine.load."""
        begun = sum(each.num_pending for each in self._running if each.num_pending > 1)
        return Load(
            running=len(self._running),
            waiting=len(self._waiting),
            free_blocks=self.pool.num_free,
            num_blocks=self.pool.num_blocks,
            evictable_blocks=self.pool.num_evictable,
            prefill_tokens=self._waiting_tokens + begun,
            context_tokens=sum(each.num_computed for each in self._running if each.num_pending == 1),
        )
