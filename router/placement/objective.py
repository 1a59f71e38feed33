"""The placement objective: the choice that makes everyone together wait the fewest seconds.

For every pair (P, D), where P is a prefill worker or another decode worker (any worker can compute any prompt), and for
every D alone, these are the seconds that the request itself waits,

    queue + pull + prefill + hop  (to the first token)  + transfer + admission + decode,

and those that others wait because of it: prompts that come to the same queue later, streams that share D's steps, and
whoever asks again for KV that is evicted. One second is one second, whoever waits. At low load this is the Mooncake
objective (Qin et al. 2024, algorithm 1); the longer queues are, the more it saves work.

How many others wait is taken from who waits now: by Little's law, as many prompts come while one waits in a queue as
there are in the queue on average; and as many streams share the steps of an answer as share them now. Those that go
behind the request do not count: the snapshot leaves out their prompts, and says how many of the streams are theirs.
"""

import math
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeAlias

from msgspec import Struct

from penstock.router.placement.costs import PRIOR_LINK, attention_pairs
from penstock.router.placement.prompts import chunks, left_s
from penstock.router.policy import (
    ClusterSnapshot,
    Placement,
    PlacementRequest,
    Prediction,
    WorkerState,
)

_NEVER_S = 1e9
"""For memory that will not come free: chosen only where nothing else is left."""
_FEW_PROMPTS = 8
"""More than others have is no sign of a lie."""


class Computing(Struct, frozen=True, gc=False):
    """The prompt on one worker."""

    total_s: float
    """With what others wait."""
    own_s: float
    queue_s: float
    pull_s: float
    prefill_s: float
    others_s: float
    cached_tokens: int
    last_tokens: int
    """Computed in the last step: their KV can be transferred only after it."""
    source: str | None


class Decoding(Struct, frozen=True, gc=False):
    """The answer on one worker, whoever computes the prompt."""

    total_s: float
    """But for admission, which may be over when the prompt is computed, and for stalls."""
    decode_s: float
    stall_s: float
    """By the prompts that wait there, for a stream whose own prompt is computed elsewhere; else they come before it."""
    others_s: float
    evict_s: float
    admit_s: float
    """From now until there is memory."""


@dataclass(slots=True)
class _Holders:
    """Who has most cached KV of the prompt, with how much: on each machine, on the best, on the second best."""

    of_node: dict[str, tuple[int, WorkerState]]
    first: tuple[int, WorkerState]
    second: tuple[int, WorkerState] | None = None


_first = itemgetter(0)
_Choice: TypeAlias = tuple[WorkerState | None, WorkerState, Computing, Decoding]


class Seconds:
    """The router's policy."""

    def __init__(self, *, pulls: bool = True) -> None:
        """`pulls`: whether cached KV may be pulled from third workers."""
        self._pulls = pulls

    def choose(self, request: PlacementRequest, cluster: ClusterSnapshot) -> Placement | None:
        """The cheapest of all pairs of one revision and of all decode workers alone."""
        scene = Scene(request, cluster, pulls=self._pulls)
        choice = scene.best()
        return None if choice is None else scene.placement(*choice)

    def candidates(self, request: PlacementRequest, cluster: ClusterSnapshot) -> list[Placement]:
        """All of them with their predictions, best first: for explaining a decision."""
        scene = Scene(request, cluster, pulls=self._pulls)
        found = [scene.placement(*choice) for choice in scene.all()]
        return sorted(found, key=lambda placement: placement.prediction.total_s if placement.prediction else 0.0)

    def predict(self, request: PlacementRequest, cluster: ClusterSnapshot, placement: Placement) -> Prediction | None:
        """What any placement will take, whoever chose it; None when its workers are not in the snapshot."""
        workers = {worker.url: worker for worker in (*cluster.prefill, *cluster.decode)}
        decode, computes = workers.get(placement.decode), workers.get(placement.prefill or placement.decode)
        if decode is None or computes is None:
            return None
        scene = Scene(request, cluster, pulls=False)
        source = workers.get(placement.source) if placement.source else None
        computing = scene.computing(computes, source)
        prefill = computes if placement.prefill else None
        return scene.placement(prefill, decode, computing, scene.decoding(decode)).prediction


class Scene:
    """One decision: a request and a cluster, and what both imply for each worker."""

    def __init__(self, request: PlacementRequest, cluster: ClusterSnapshot, *, pulls: bool) -> None:
        self._request = request
        self._cluster = cluster
        self._prompt = request.prompt_tokens
        self._prompt_pairs = attention_pairs(request.prompt_tokens)
        self._now_s = cluster.now_s
        most = request.prompt_tokens - 1  # the last token is always computed
        self._cached = {url: min(tokens, most) for url, tokens in request.cached_tokens.items()}
        self._decode = [worker for worker in cluster.decode if worker.url not in request.excluded]
        self._able = self._decode
        """Those of them that may compute prompts: the first ones."""
        if request.busy:
            self._decode.sort(key=lambda worker: worker.url in request.busy)
            self._able = [worker for worker in self._decode if worker.url not in request.busy]
        self._prefill = [worker for worker in cluster.prefill if worker.url not in request.excluded]
        self._waiting = {
            "prefill": _mean_prompts(cluster.prefill, cluster.waiting),
            "decode": _mean_prompts(cluster.decode, 0 if cluster.prefill else cluster.waiting),
        }
        self._hop_s = max(0.0, cluster.pair_s - cluster.alone_s)
        self._near, self._far = (cluster.links.get(link) or PRIOR_LINK for link in ("node", "network"))
        self._holders = self._find_holders() if pulls else {}

    def best(self) -> _Choice | None:
        """Looks at workers in the order of what they cost, and stops where no better pair can follow."""
        if not self._decode:
            return None
        decodings = [(self.decoding(worker), worker) for worker in self._decode]
        computings = [(self.computing(worker), worker) for worker in (*self._prefill, *self._able)]
        least = math.inf
        choice: _Choice | None = None
        for (decoding, decode), (computing, _) in zip(decodings, computings[len(self._prefill) :], strict=False):
            total_s = self._cluster.alone_s + computing.total_s + decoding.total_s
            total_s += max(0.0, decoding.admit_s - computing.own_s)
            if total_s < least:
                least, choice = total_s, (None, decode, computing, decoding)
        joining = [(decoding.total_s + decoding.stall_s, decoding, each) for decoding, each in decodings]
        joining.sort(key=_first)
        for computing, prefill in sorted(computings, key=_by_total):
            own_s = self._cluster.pair_s + computing.total_s
            if own_s + joining[0][0] >= least:
                break
            own_s += self._evict_s(prefill, self._prompt)
            for joined_s, decoding, decode in joining:
                total_s = own_s + joined_s
                if total_s >= least:
                    break
                late_s = decoding.admit_s - computing.own_s
                if total_s + late_s < least and decode.revision == prefill.revision and decode is not prefill:
                    total_s += max(late_s, self._transfer_s(prefill, decode, computing))
                    if total_s < least:
                        least, choice = total_s, (prefill, decode, computing, decoding)
        return choice

    def all(self) -> list[_Choice]:
        """Every candidate."""
        decodings = [(self.decoding(worker), worker) for worker in self._decode]
        computings = [(self.computing(worker), worker) for worker in (*self._prefill, *self._able)]
        return [
            (None if decode is prefill else prefill, decode, computing, decoding)
            for computing, prefill in computings
            for decoding, decode in decodings
            if decode.revision == prefill.revision
        ]

    def placement(
        self, prefill: WorkerState | None, decode: WorkerState, computing: Computing, decoding: Decoding
    ) -> Placement:
        """A choice with its prediction."""
        transfer_s = self._transfer_s(prefill, decode, computing) if prefill else 0.0
        prediction = Prediction(
            queue_s=computing.queue_s,
            pull_s=computing.pull_s,
            prefill_s=computing.prefill_s,
            hop_s=self._cluster.pair_s if prefill else self._cluster.alone_s,
            transfer_s=transfer_s,
            admit_s=max(0.0, decoding.admit_s - computing.own_s - transfer_s),
            decode_s=decoding.decode_s + (decoding.stall_s if prefill else 0.0),
            others_s=computing.others_s + decoding.others_s,
            evict_s=decoding.evict_s + (self._evict_s(prefill, self._prompt) if prefill else 0.0),
            cached_tokens=computing.cached_tokens,
        )
        return Placement(decode.url, prefill.url if prefill else None, computing.source, prediction, "seconds")

    def computing(self, worker: WorkerState, source: WorkerState | None = None) -> Computing:
        """The prompt on `worker`, which pulls KV from `source`, or from the best holder if that is cheaper."""
        cost, streams = worker.cost, worker.streams
        chunk, shared_s = chunks(worker)
        token_s = cost.prefill_token_s + shared_s / chunk
        queue_s = left_s(worker, token_s, self._now_s) if worker.prefill_tokens else 0.0
        waiting = self._waiting[worker.role]
        own = self._cached.get(worker.url, 0)
        streams -= worker.streams_behind
        found, least = None, 0.0
        for cached, holder in self._beginnings(worker, own, source):
            pull_s = 0.0
            if holder is not None:
                link = self._near if holder.node == worker.node else self._far
                pull_s = self._hop_s + link.seconds(cached - own)
            tokens = self._prompt - cached
            steps = -(-tokens // chunk)
            pairs = self._prompt_pairs - cached * (cached + 1) // 2
            work_s = tokens * cost.prefill_token_s + pairs * cost.prefill_pair_s
            prefill_s = work_s + steps * shared_s
            own_s = prefill_s + (pull_s if pull_s > queue_s else queue_s)
            others_s = streams * work_s + waiting * prefill_s
            total_s = own_s + others_s
            if found is None or total_s < least:
                last = tokens - (steps - 1) * chunk
                found, least = (own_s, pull_s, prefill_s, others_s, cached, last, holder), total_s
        assert found is not None
        own_s, pull_s, prefill_s, others_s, cached, last, holder = found
        exposed_s = pull_s - queue_s if pull_s > queue_s else 0.0
        url = holder.url if holder is not None else None
        return Computing(least, own_s, queue_s, exposed_s, prefill_s, others_s, cached, last, url)

    def _beginnings(
        self, worker: WorkerState, own: int, source: WorkerState | None
    ) -> list[tuple[int, WorkerState | None]]:
        """How computing may begin: with so many cached tokens, of which those beyond its `own` are pulled from whom."""
        if source is not None:
            return [(max(own, self._readable(source)), source)]
        found: list[tuple[int, WorkerState | None]] = [(own, None)]
        holders = self._holders.get(worker.revision)
        if holders is not None:
            near = holders.of_node.get(worker.node)
            if near is not None and near[0] > own:
                found.append(near)
            far = holders.second if near is holders.first else holders.first
            if far is not None and far[0] > own:
                found.append(far)
        return found

    def decoding(self, worker: WorkerState) -> Decoding:
        """The answer on `worker`: its steps are longer by what this request adds to them, for all who share them."""
        request, cost = self._request, worker.cost
        output = request.output_tokens
        context = request.prompt_tokens + output / 2
        added_s = request.num_answers * (cost.decode_token_s + context * cost.context_token_s)
        step_s = cost.step_s + worker.streams * cost.decode_token_s + worker.context_tokens * cost.context_token_s
        decode_s = output * (step_s + added_s)
        if worker.tokens_behind:
            decode_s += worker.tokens_behind * cost.prefill_token_s + worker.pairs_behind * cost.prefill_pair_s
        others_s = output * (worker.streams - worker.streams_behind) * added_s
        evict_s = self._evict_s(worker, request.prompt_tokens + output * request.num_answers)
        admit_s = 0.0
        if worker.num_tokens:
            missing = request.prompt_tokens + 1 - request.cached_tokens.get(worker.url, 0) - worker.free_tokens
            if missing > 0:
                admit_s = self._admit_s(worker, missing, step_s)
        stall_s = left_s(worker, cost.prefill_token_s, self._now_s) if worker.prefill_tokens else 0.0
        return Decoding(decode_s + others_s + evict_s, decode_s, stall_s, others_s, evict_s, admit_s)

    def _admit_s(self, worker: WorkerState, missing: int, step_s: float) -> float:
        """Until so many tokens are free: streams end evenly over twice the time that is left to them on average."""
        if missing > worker.context_tokens or not worker.streams:
            return _NEVER_S
        return missing / worker.context_tokens * 2 * worker.output_tokens / worker.streams * step_s

    def _evict_s(self, worker: WorkerState, stored: int) -> float:
        """Of storing so many tokens: what falls out of the prefix cache would have been reused as often as usual."""
        if not worker.evictable_tokens:
            return 0.0
        stored -= self._request.cached_tokens.get(worker.url, 0)
        evicted = min(stored - worker.free_tokens + worker.evictable_tokens, worker.evictable_tokens)
        return evicted * self._cluster.reuse * worker.cost.prefill_token_s if evicted > 0 else 0.0

    def _transfer_s(self, prefill: WorkerState, decode: WorkerState, computing: Computing) -> float:
        """What remains after the first token: the last step's KV, or more if the link is slower than computing."""
        missing = self._request.prompt_tokens - self._request.cached_tokens.get(decode.url, 0)
        if missing <= 0:
            return 0.0
        link = self._near if prefill.node == decode.node else self._far
        return max(link.seconds(min(missing, computing.last_tokens)), link.seconds(missing) - computing.prefill_s)

    def _readable(self, source: WorkerState) -> int:
        return min(self._request.readable(source.url), self._prompt - 1)

    def _find_holders(self) -> dict[str, _Holders]:
        """By revision."""
        found: dict[str, _Holders] = {}
        cached, workers = self._cached, (*self._prefill, *self._decode)
        holders = [(cached[each.url], each) for each in workers if self._request.readable(each.url)]
        for holder in sorted(holders, key=_first, reverse=True):
            of_revision = found.get(holder[1].revision)
            if of_revision is None:
                found[holder[1].revision] = _Holders({holder[1].node: holder}, holder)
            elif holder[1].node not in of_revision.of_node:
                of_revision.of_node[holder[1].node] = holder
                of_revision.second = of_revision.second or holder
        return found


def _mean_prompts(pool: tuple[WorkerState, ...], more: int) -> float:
    """That wait for each of `pool`, with as many `more` in the router.

    Part of it is what workers claim, so none counts for much more than is usual: else one that lies would make all of
    them look too busy for any prompt.
    """
    if not pool:
        return 0.0
    prompts = sorted(worker.prompts for worker in pool)
    most = 2 * prompts[(len(pool) - 1) // 2] + _FEW_PROMPTS
    believed = sum(prompts) if prompts[-1] <= most else sum(min(each, most) for each in prompts)
    return (believed + more) / len(pool)


def _by_total(item: tuple[Computing | Decoding, WorkerState]) -> float:
    return item[0].total_s
