"""The engine: requests in, frames out, one step at a time.

    add / cancel / ... -> step: schedule -> admit and preempt -> run -> sample -> frames

Synchronous and free of I/O: it does not know who asked, only what the frames in `outputs` are for. Pulling KV from
other workers is the Redeemer's part.
"""

import time
from bisect import insort
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from typing import Protocol

from torch import Tensor

from penstock.engine.config import EngineConfig
from penstock.engine.kv.ledger import Ledger
from penstock.engine.kv.pool import BlockPool
from penstock.engine.messages import Output, Stats
from penstock.engine.runner import Runner
from penstock.engine.sampler import Sampled, SampleRow, sample
from penstock.engine.scheduler import Budget, schedule
from penstock.engine.sequence import Request, Role, Sequence
from penstock.engine.spans import Spans
from penstock.engine.tickets import Tickets
from penstock.engine.trace import open_trace
from penstock.errors import RetryableError
from penstock.hashing import BlockHasher
from penstock.protocol import (
    Done,
    Finished,
    FinishReason,
    FirstToken,
    GenerateRequest,
    Load,
    StepTiming,
    Tokens,
    error_frame,
)


class Pulls(Protocol):
    """What the engine asks of the Redeemer."""

    @property
    def num_sequences(self) -> int:
        """Sequences that will join the batch when their pulls under way are verified."""

    def begin(self, sequence: Sequence, blocks: list[int], num_matched: int) -> None:
        """`blocks` were reserved for the sequence's tokens; all but the first `num_matched` are to be pulled, from its
        prefill worker (who has them all) or from its source (who may have some)."""

    def drop(self, request: Request) -> None:
        """The request ended early: give back its blocks as soon as nothing can write to them any more."""


class Engine:
    """Continuous batching over one runner and one block pool."""

    def __init__(
        self, config: EngineConfig, runner: Runner, new_hasher: Callable[[str], BlockHasher], generation: str
    ) -> None:
        """`new_hasher(salt)` gives the root of a request's block hashes; `generation` names this process on tickets."""
        self.pulls: Pulls | None = None
        self.announce: Callable[[], None] = lambda: None
        """Called in the middle of a step, when blocks were evicted and nothing is computed yet: whoever hopes for them
        should know before it sends its request."""
        self.runner = runner
        self.new_hasher = new_hasher
        self.eos_ids = runner.decoder.config.eos_ids
        self.vocab_size = runner.decoder.config.vocab_size
        self.max_context_tokens = runner.decoder.max_context_tokens
        poison = runner.poison if config.poison else None
        self.pool = BlockPool(len(runner.kv), poison=poison)
        self.budget = Budget(
            config.max_step_tokens, config.max_sequences, runner.layout.block_size, config.prefix_cache
        )
        self.ledger = Ledger(self.pool, self.budget.block_size, prefix_cache=self.budget.prefix_cache)
        self.tickets = Tickets(self.pool, generation)
        self.requests: dict[str, Request] = {}
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.outputs: list[Output] = []
        self.timings: list[StepTiming] = []
        self.trace = open_trace(config.trace)
        self.spans = Spans()
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0

    # What callers do between steps.

    def add(self, wire: GenerateRequest, role: Role = Role.GENERATE, *, traced: bool = False) -> Request:
        """Queues a request. Its frames appear in `outputs` under its request id."""
        request = Request.create(wire, role, self.new_hasher(wire.salt), self.budget.block_size)
        request.traced = traced
        self.requests[wire.request_id] = request
        first = request.sequences[0]
        if first.output and (reason := self._finish_reason(request, first.output)):
            self._finish(first, reason)  # a resume that had nothing left to generate
        else:
            self.queue(first)
        return request

    def cancel(self, request_id: str) -> None:
        """Frees all that a request holds, leases included. Unknown ids are ignored."""
        request = self.requests.pop(request_id, None)
        if request is not None:
            self.drop(request)
        self.tickets.end_lookup(request_id)

    def fail(self, request: Request, error: RetryableError) -> None:
        """Ends a request with an error frame."""
        if self.requests.pop(request.wire.request_id, None) is not None:
            self.drop(request)
            self._emit(request, error_frame(error))

    def drop(self, request: Request) -> None:
        """Takes a request's sequences out of all queues and frees their blocks."""
        for sequence in request.sequences:
            if sequence in self.waiting:
                self._unqueue(sequence)
            if sequence in self.running:
                self.running.remove(sequence)
            self.ledger.free(sequence)
        if self.pulls is not None:
            self.pulls.drop(request)

    def queue(self, sequence: Sequence) -> None:
        """Lets a sequence that holds nothing wait to be admitted."""
        sequence.request.queued_at = time.monotonic()
        self.ledger.give_up(sequence)
        self.ledger.want(sequence)
        insort(self.waiting, sequence, key=lambda each: each.request.rank)

    def _unqueue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self.ledger.unwant(sequence)

    def start(self, sequence: Sequence, blocks: list[int], num_cached: int) -> None:
        """A sequence joins the batch with `blocks` for all of its tokens; the first `num_cached` hold their KV."""
        request = sequence.request
        sequence.blocks, sequence.num_committed = blocks, num_cached
        sequence.num_computed = num_cached * self.budget.block_size
        if request.cached_tokens is None:
            request.cached_tokens = min(sequence.num_computed, len(request.prompt))
        self.running.append(sequence)
        if request.role is Role.PREFILL and num_cached:
            self._emit(request, self.tickets.publish(sequence))

    def emit_first_tokens(self, request: Request, first_tokens: Seq[FirstToken]) -> None:
        """Emits what the prefill worker sampled, one token per sample."""
        request.fork()
        for sequence, first in zip(request.sequences, first_tokens, strict=True):
            self._append(sequence, Sampled(first.token, first.logprob))

    def join(self, request: Request, blocks: list[int], num_computed: int) -> None:
        """The KV of the first `num_computed` tokens is in `blocks`: every unfinished sequence joins the batch."""
        request.role = Role.GENERATE
        self.trace("joined", request.wire.request_id)
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                self.pool.acquire(blocks)
                sequence.blocks = list(blocks)
                sequence.num_computed = num_computed
                sequence.num_committed = num_computed // self.budget.block_size
                self.running.append(sequence)
        self.pool.free(blocks)

    def load(self) -> Load:
        """What the engine is doing now."""
        leased = sum(request.leased for request in self.requests.values())
        return Load(
            running=len(self.running),
            waiting=len(self.waiting),
            leased=leased,
            free_blocks=self.pool.num_free,
            num_blocks=self.pool.num_blocks,
            evictable_blocks=self.pool.num_evictable,
            prefill_tokens=sum(each.num_pending for each in self._prompts()),
            context_tokens=sum(each.num_computed for each in self.running if each.num_pending == 1),
        )

    def _prompts(self) -> Iterator[Sequence]:
        """Those that compute a prompt here or wait to."""
        yield from (each for each in self.running if each.num_pending > 1)
        yield from (each for each in self.waiting if each.request.role is not Role.PULL)

    def stats(self) -> Stats:
        """Counters since start."""
        return Stats(
            prompt_tokens=self.num_prompt_tokens,
            cached_tokens=self.num_cached_tokens,
            generated_tokens=self.num_generated_tokens,
            preemptions=self.num_preemptions,
        )

    # One step.

    def step(self) -> bool:
        """Plans and runs one step. False: there is nothing to do until something arrives."""
        pulling = self.pulls.num_sequences if self.pulls is not None else 0
        plan = schedule(self.running, self.waiting, self.pool, self.budget, num_pulling=pulling)
        for sequence in plan.preempt:
            self._preempt(sequence)
        for _, matched in (*plan.admit, *plan.pull):  # before any allocation, which could evict what one was promised
            self.pool.acquire(matched)
        for sequence, matched in plan.admit:
            self.start(sequence, self._admit(sequence, matched), len(matched))
        for sequence, matched in plan.pull:
            assert self.pulls is not None
            self.pulls.begin(sequence, self._admit(sequence, matched), len(matched))
        if not plan.work:
            return bool(plan.preempt or plan.pull)  # a pull may have joined the batch at once
        for sequence, rows in plan.work:
            self._make_room(sequence, rows)
        self.pool.evict_ahead()
        if self.pool.has_removed:
            self.announce()
        began = time.monotonic()
        logits = self.runner.run(plan.work)
        self.timings.append(step_timing(plan.work, time.monotonic() - began))
        for sequence, rows in plan.work:
            if sequence.request.traced and sequence.num_computed < len(sequence.request.prompt):
                self.spans.add(sequence.request, "prefill_chunk", began, rows)
        self._advance(plan.work, logits)
        return True

    def planned_rows(self) -> int:
        """An upper bound of the rows of the next step, for predicting its length."""
        pending = sum(sequence.num_pending for sequence in (*self.running, *self.waiting))
        return min(pending, self.budget.max_step_tokens)

    def _admit(self, sequence: Sequence, matched: list[int]) -> list[int]:
        """Takes a sequence out of the waiting ones: blocks for all of its tokens, the `matched` ones first, which are
        already referenced."""
        request = sequence.request
        self._unqueue(sequence)
        request.source = None
        self.spans.add(request, "queue", request.queued_at)
        num_tokens = request.num_start_tokens + 1 if request.role is Role.PULL else sequence.num_tokens
        self.num_cached_tokens += len(matched) * self.budget.block_size
        return self.ledger.reserve(sequence, matched, num_tokens)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.ledger.free(sequence)
        self.queue(sequence)
        self.num_preemptions += 1

    def _make_room(self, sequence: Sequence, rows: int) -> None:
        """Gives the sequence blocks of its own for its next `rows` tokens."""
        index = sequence.num_computed // self.budget.block_size
        if index < len(sequence.blocks) and self.pool.refs(sequence.blocks[index]) > 1:
            shared, [own] = sequence.blocks[index], self.pool.allocate(1)
            self.runner.copy_block(shared, own)
            self.pool.free([shared])
            sequence.blocks[index] = own
        self.ledger.grow(sequence, sequence.num_computed + rows)

    def _advance(self, work: Seq[tuple[Sequence, int]], logits: Tensor) -> None:
        """After a step: commits full blocks, publishes tickets, samples."""
        targets: list[tuple[Sequence, SampleRow]] = []
        sources: list[int] = []
        num_sampling = 0
        for sequence, rows in work:
            request = sequence.request
            self.num_prompt_tokens += min(rows, max(0, len(request.prompt) - sequence.num_computed))
            sequence.num_computed += rows
            self.ledger.commit(sequence)
            if sequence.num_pending == 0:
                if request.role is Role.PREFILL:
                    self.trace("prefilled", request.wire.request_id)
                rows_of = self._sample_rows(sequence)
                targets += rows_of
                sources += [num_sampling] * len(rows_of)
                num_sampling += 1
            elif request.role is Role.PREFILL:
                self._emit(request, self.tickets.publish(sequence))
        if not targets:
            return
        if len(sources) != num_sampling:
            logits = logits[sources]
        sampled = sample(logits, [row for _, row in targets])
        first_tokens: dict[Sequence, list[FirstToken]] = {}
        for sequence in {sequence for (sequence, _), token in zip(targets, sampled, strict=True) if token is None}:
            self._fail_broken(sequence.request)
        for (sequence, _), token in zip(targets, sampled, strict=True):
            if token is None or sequence.request.wire.request_id not in self.requests:
                continue
            if sequence.request.role is Role.PREFILL:
                first_tokens.setdefault(sequence, []).append(self._first_token(sequence, token))
            else:
                self._append(sequence, token)
        for sequence, firsts in first_tokens.items():
            self.running.remove(sequence)
            sequence.request.leased = True
            self._emit(sequence.request, self.tickets.publish_last(sequence, firsts))

    def _fail_broken(self, request: Request) -> None:
        """Its logits are not finite. The others' step goes on, and nobody gets its KV from the prefix cache."""
        for sequence in request.sequences:
            self.pool.disown(sequence.blocks)
        self.fail(request, RetryableError("the model's logits are not finite for this request"))

    def _sample_rows(self, sequence: Sequence) -> list[tuple[Sequence, SampleRow]]:
        """One row per sample that takes its next token from this sequence's logits."""
        request = sequence.request
        if request.role is Role.PREFILL:
            return [(sequence, self._sample_row(request, wire.seed, sequence.output)) for wire in request.wire.samples]
        if not request.forked:
            request.fork()
            for fork in request.sequences[1:]:
                self.pool.acquire(fork.blocks)
                self.running.append(fork)
            return [(each, self._sample_row(request, each.sample.seed, each.output)) for each in request.sequences]
        return [(sequence, self._sample_row(request, sequence.sample.seed, sequence.output))]

    def _sample_row(self, request: Request, seed: int, output: list[int]) -> SampleRow:
        return SampleRow(
            params=request.wire.sampling,
            seed=seed,
            position=len(output),
            prompt=request.prompt,
            output=output,
            eos_ids=self.eos_ids,
        )

    def _first_token(self, sequence: Sequence, sampled: Sampled) -> FirstToken:
        reason = self._finish_reason(sequence.request, [*sequence.output, sampled.token])
        return FirstToken(sampled.token, sampled.logprob, reason)

    def _append(self, sequence: Sequence, sampled: Sampled) -> None:
        """Adds one token to a sequence and emits it."""
        request = sequence.request
        logprobs = (sampled.logprob,) if sampled.logprob is not None else ()
        position = len(sequence.output)
        cached = request.cached_tokens if position == len(sequence.sample.output) else None
        self._emit(request, Tokens(sequence.sample.index, position, (sampled.token,), logprobs, cached))
        sequence.output.append(sampled.token)
        self.num_generated_tokens += 1
        if reason := self._finish_reason(request, sequence.output):
            self._finish(sequence, reason)

    def _finish_reason(self, request: Request, output: Seq[int]) -> FinishReason | None:
        sampling = request.wire.sampling
        if output[-1] in request.stop_ids or (output[-1] in self.eos_ids and not sampling.ignore_eos):
            return "stop"
        full = len(request.prompt) + len(output) >= self.max_context_tokens
        return "length" if len(output) >= sampling.max_tokens or full else None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        request = sequence.request
        sequence.finish_reason = reason
        if sequence in self.running:
            self.running.remove(sequence)
        self.ledger.free(sequence)
        self._emit(request, Finished(sequence.sample.index, reason))
        if request.finished:
            del self.requests[request.wire.request_id]
            block_bytes = self.runner.layout.block_bytes
            done = Done(
                cached_tokens=request.cached_tokens or 0,
                prefilled_tokens=request.prefilled_tokens,
                pulled_blocks=request.pulled_blocks,
                pulled_bytes=request.pulled_blocks * block_bytes,
                pulls=request.pulls,
                pull_s=request.pull_s,
                sourced_blocks=request.sourced_blocks,
            )
            self._emit(request, done)

    def _emit(self, request: Request, frame: object) -> None:
        self.outputs.append(Output(request.wire.request_id, frame))  # type: ignore[arg-type]


def step_timing(work: Seq[tuple[Sequence, int]], seconds: float) -> StepTiming:
    """What one step computed, and how long it took."""
    prefill = decode = context = pairs = 0
    for sequence, rows in work:
        if sequence.num_pending > 1:
            prefill += rows
            pairs += rows * sequence.num_computed + rows * (rows + 1) // 2
        else:
            decode += rows
            context += sequence.num_computed + rows
    return StepTiming(prefill, decode, context, seconds, pairs)
