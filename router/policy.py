"""Where a request runs: a pure choice over a snapshot, so that policies can be simulated and compared.

This is the contract between router, policies and simulator. The policy that the router uses is placement/objective.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from penstock.router.placement.costs import PRIOR_LINK, PRIOR_STEP, LinkCost, StepCost

EXPECTED_OUTPUT_TOKENS = 256
"""Answers are assumed no longer than this: most requests leave `max_tokens` at the rest of the context."""

Role: TypeAlias = Literal["prefill", "decode"]


class WorkerState(Struct, frozen=True, gc=False):
    """One ready worker: what is in flight there, and what work costs there. (A Struct: it is made anew very often.)"""

    url: str
    prefill_tokens: int = 0
    """Prompt tokens still to be computed there before the request that is placed."""
    output_tokens: int = 0
    """Output tokens still expected from there."""
    revision: str = ""
    """Only workers of one revision are paired: others may have other weights or another layout of the KV cache."""
    role: Role = "decode"
    kind: str = ""
    """Workers of one kind (device, model, dtype) share a cost model."""
    node: str = ""
    """The machine: moving KV within one is another link than between two."""

    prompts: int = 0
    """Prompts queued or being computed there that do not go behind it."""
    prefill_pairs: int = 0
    """Query-key pairs of their uncomputed tokens (costs.attention_pairs)."""
    head_tokens: int = 0
    head_pairs: int = 0
    """Of these, the first prompt's."""
    head_since_s: float = 0.0
    """When that prompt became the first, on the snapshot's clock: what it has been computed since then is done."""
    streams: int = 0
    """Sequences that decode there, or will when their prompt is computed."""
    max_streams: int = 0
    """Sequences that its engine batches; 0 where unknown."""
    context_tokens: int = 0
    """KV tokens that they hold, and read in every step."""

    num_tokens: int = 0
    """Capacity of its KV cache; 0 where unknown."""
    free_tokens: int = 0
    """Of these, how many can be allocated: empty ones and those that only the prefix cache holds."""
    evictable_tokens: int = 0
    """Of the free ones, how many the prefix cache holds and would lose."""
    block_tokens: int = 16
    step_tokens: int = 2048
    """Most tokens of one step: longer prompts are computed in chunks of this."""

    cost: StepCost = PRIOR_STEP
    streams_behind: int = 0
    """Of the streams, those of requests that go behind the one that is placed: what they lose does not count."""
    tokens_behind: int = 0
    pairs_behind: int = 0
    """Of prompts that go behind: they are not waited for, but stall the answer, as steps compute them too."""

    @property
    def work(self) -> int:
        return self.prefill_tokens + self.output_tokens


LinkClass: TypeAlias = Literal["node", "network"]


def link_class(source: WorkerState, target: WorkerState) -> LinkClass:
    """KV moves within one machine, or between two."""
    return "node" if source.node == target.node else "network"


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """The workers that are ready now, and what connects them."""

    prefill: tuple[WorkerState, ...] = ()
    decode: tuple[WorkerState, ...] = ()
    links: Mapping[LinkClass, LinkCost] = field(default_factory=dict)
    """Missing classes cost PRIOR_LINK."""
    alone_s: float = 0.0
    """What a request on a decode worker alone waits for besides queue and prefill: HTTP, tokenless frames, a step."""
    pair_s: float = 0.0
    """The same with a prefill worker: one more hop."""
    reuse: float = 0.0
    """How often a token of KV is found in a prefix cache before it is evicted, on average."""
    waiting: int = 0
    """Requests that wait in the router until workers have room, and do not go behind."""
    now_s: float = 0.0
    """Of any steady clock, for policies that look at a window of time."""

    def link(self, source: WorkerState, target: WorkerState) -> LinkCost:
        return self.links.get(link_class(source, target)) or PRIOR_LINK


@dataclass(frozen=True, slots=True)
class Picked:
    """What the endpoint picker of a gateway has decided beside the decode worker: workers as `host:port`."""

    prefill: str
    """Who computes the prompt; the decode worker itself when nobody else is to."""
    source: str = ""
    """Whose cached KV is pulled before that; empty for nobody's."""
    priority: int = 0
    """Among a worker's prompts, as the picker's books have it; it counts only where that is further behind."""


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What a policy may know of a request."""

    prompt_tokens: int
    cached_tokens: Mapping[str, int] = field(default_factory=dict)
    """Per worker URL, how much of the prompt it has in its cache, or will have when the request is there."""
    excluded: frozenset[str] = frozenset()
    """Workers that have no part: they have already failed this request, or are full."""
    output_tokens: int = EXPECTED_OUTPUT_TOKENS
    """Expected, per answer."""
    num_answers: int = 1
    picked: Picked | None = None
    """Only the router that stands beside a decode worker goes by this (beside.py)."""
    pending: frozenset[str] = frozenset()
    """Workers that are still to compute or to pull some of their cached tokens: what another worker would find there
    depends on when it asks."""
    priority: int = 0
    """Among a worker's prompts; smaller is first."""
    busy: frozenset[str] = frozenset()
    """Decode workers with prompts enough: they should compute no further one, but may decode. A policy need
    not heed it."""

    def readable(self, url: str) -> int:
        """Tokens of the prompt that other workers can read from this one's cache."""
        return 0 if url in self.pending else self.cached_tokens.get(url, 0)

    def uncached(self, worker: WorkerState) -> int:
        """Prompt tokens `worker` would have to compute; the last one is always computed."""
        return max(1, self.prompt_tokens - self.cached_tokens.get(worker.url, 0))


@dataclass(frozen=True, slots=True)
class Prediction:
    """The seconds of one placement, part by part: what the request waits for, then what others do because of it."""

    queue_s: float = 0.0
    """Prompts before it on the worker that computes."""
    pull_s: float = 0.0
    """Cached KV on its way to the worker that computes, beyond the queue's time."""
    prefill_s: float = 0.0
    hop_s: float = 0.0
    """HTTP and frames."""
    transfer_s: float = 0.0
    """KV from prefill to decode worker that arrives after the first token."""
    admit_s: float = 0.0
    """For memory on the decode worker, beyond the time of prefill and transfer."""
    decode_s: float = 0.0
    """The answer after its first token."""
    others_s: float = 0.0
    """How much longer all other requests take, but for those that go behind."""
    evict_s: float = 0.0
    """What it will take to compute the evicted KV again, as often as it is expected to be asked for."""
    cached_tokens: int = 0
    """Prompt tokens that nobody computes."""
    trusted: bool = True
    """Not while predictions are known to be off: then it is only compared with what comes true."""

    @property
    def ttft_s(self) -> float:
        """Until the first token, which the prefill worker samples."""
        return self.queue_s + self.pull_s + self.prefill_s + self.hop_s

    @property
    def total_s(self) -> float:
        """What the objective makes smallest."""
        return self.ttft_s + self.transfer_s + self.admit_s + self.decode_s + self.others_s + self.evict_s


@dataclass(frozen=True, slots=True)
class Placement:
    """`decode` streams the answer; `prefill` computes the prompt, or `decode` does it alone."""

    decode: str
    prefill: str | None = None
    source: str | None = None
    """Whose cached KV the computing worker pulls before it computes the rest of the prompt."""
    prediction: Prediction | None = field(default=None, compare=False)
    by: str = field(default="load", compare=False)
    """What decided: "load", "seconds", or the "hand-over" of a worker that leaves."""

    @property
    def computing(self) -> str:
        """Who computes the prompt."""
        return self.prefill or self.decode

    def relies_on(self, request: PlacementRequest) -> tuple[str, int]:
        """The worker on whose cache it rests, and the tokens that are found or read there."""
        own, others = request.cached_tokens.get(self.computing, 0), request.readable(self.source or "")
        return (self.source, others) if self.source and others > own else (self.computing, own)


class Policy(Protocol):
    """How placements are chosen."""

    def choose(self, request: PlacementRequest, cluster: ClusterSnapshot) -> Placement | None:
        """None when no decode worker is left. Must not choose an excluded worker, nor a pair of two revisions."""
        ...
