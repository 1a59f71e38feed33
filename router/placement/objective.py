"""The placement objective: the choice that makes everyone together wait the fewest seconds.

For every pair (P, D), and for every D alone, these are the seconds that the request itself waits,

    queue + pull + prefill + hop  (to the first token)  + transfer + admission + decode,

and those that others wait because of it: prompts that come to the same queue later, streams that share D's steps, and
whoever asks again for KV that is evicted. One second is one second, whoever waits. At low load this is the Mooncake
objective (Qin et al. 2024, algorithm 1); the longer queues are, the more it saves work.

How many others wait is taken from who waits now: by Little's law, as many prompts come while one waits in a queue as
there are in the queue on average; and as many streams share the steps of an answer as share them now.
"""

from typing import NamedTuple, TypeAlias

from penstock.router.placement.costs import LinkCost, attention_pairs
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, Prediction, WorkerState

_NEVER_S = 1e9
"""For memory that will not come free: chosen only where nothing else is left."""


class Computing(NamedTuple):
    """The prompt on one worker."""

    total_s: float
    """With what others wait."""
    queue_s: float
    pull_s: float
    prefill_s: float
    others_s: float
    evict_s: float
    cached_tokens: int
    last_tokens: int
    """Computed in the last step: their KV can be transferred only after it."""
    source: str | None

    @property
    def own_s(self) -> float:
        return self.queue_s + self.pull_s + self.prefill_s


class Decoding(NamedTuple):
    """The answer on one worker, whoever computes the prompt."""

    total_s: float
    """But for admission, which may be over when the prompt is computed."""
    decode_s: float
    others_s: float
    evict_s: float
    admit_s: float
    """From now until there is memory."""


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
        """What a placement that another policy chose will take; None when its workers are not in the snapshot."""
        scene = Scene(request, cluster, pulls=placement.source is not None)
        workers = {worker.url: worker for worker in (*cluster.prefill, *cluster.decode)}
        decode, prefill = workers.get(placement.decode), workers.get(placement.prefill or placement.decode)
        if decode is None or prefill is None:
            return None
        pair = prefill if placement.prefill else None
        return scene.placement(
            pair, decode, scene.computing(prefill, alone=pair is None), scene.decoding(decode)
        ).prediction


class Scene:
    """One decision: a request and a cluster, and what both imply for each worker."""

    def __init__(self, request: PlacementRequest, cluster: ClusterSnapshot, *, pulls: bool) -> None:
        self._request = request
        self._cluster = cluster
        self._prefill = [worker for worker in cluster.prefill if worker.url not in request.excluded]
        self._decode = [worker for worker in cluster.decode if worker.url not in request.excluded]
        self._waiting = {
            role: sum(worker.prompts for worker in pool) / max(1, len(pool))
            for role, pool in (("prefill", cluster.prefill), ("decode", cluster.decode))
        }
        self._prompt_pairs = attention_pairs(request.prompt_tokens)
        self._holders = self._find_holders() if pulls else []

    def best(self) -> _Choice | None:
        """Looks at pairs in the order of what they cost at least, and stops where no better one can follow."""
        least = float("inf")
        choice: _Choice | None = None
        alone_s, pair_s = self._cluster.alone_s, self._cluster.pair_s
        decodings = sorted(((self.decoding(worker), worker) for worker in self._decode), key=_by_total)
        for decoding, decode in decodings:
            computing = self.computing(decode, alone=True)
            total_s = alone_s + computing.total_s + decoding.total_s + max(0.0, decoding.admit_s - computing.own_s)
            if total_s < least:
                least, choice = total_s, (None, decode, computing, decoding)
        computings = sorted(((self.computing(worker), worker) for worker in self._prefill), key=_by_total)
        for computing, prefill in computings:
            for decoding, decode in decodings:
                total_s = pair_s + computing.total_s + decoding.total_s
                if total_s >= least:
                    break
                if decode.revision != prefill.revision or decode.url == prefill.url:
                    continue
                transfer_s = self._transfer_s(prefill, decode, computing)
                total_s += max(transfer_s, decoding.admit_s - computing.own_s)
                if total_s < least:
                    least, choice = total_s, (prefill, decode, computing, decoding)
        return choice

    def all(self) -> list[_Choice]:
        """Every candidate."""
        decodings = [(self.decoding(worker), worker) for worker in self._decode]
        computings = [(self.computing(worker), worker) for worker in self._prefill]
        alone: list[_Choice] = [
            (None, decode, self.computing(decode, alone=True), decoding) for decoding, decode in decodings
        ]
        return alone + [
            (prefill, decode, computing, decoding)
            for computing, prefill in computings
            for decoding, decode in decodings
            if decode.revision == prefill.revision and decode.url != prefill.url
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
            decode_s=decoding.decode_s,
            others_s=computing.others_s + decoding.others_s,
            evict_s=computing.evict_s + decoding.evict_s,
            cached_tokens=computing.cached_tokens,
        )
        return Placement(decode.url, prefill.url if prefill else None, computing.source, prediction)

    def computing(self, worker: WorkerState, *, alone: bool = False) -> Computing:
        """The prompt on `worker`, which pulls cached KV first if that is cheaper. `alone`: it also decodes."""
        cached = min(self._request.cached_tokens.get(worker.url, 0), self._request.prompt_tokens - 1)
        found = self._computing(worker, cached, None, alone)
        links: set[LinkCost] = set()
        for tokens, holder in self._holders:
            if tokens <= cached or len(links) == 2:
                break
            link = self._cluster.link(holder, worker)
            if holder.url != worker.url and holder.revision == worker.revision and link not in links:
                links.add(link)
                hop_s = max(0.0, self._cluster.pair_s - self._cluster.alone_s)
                pulled = self._computing(worker, tokens, (holder.url, hop_s + link.seconds(tokens - cached)), alone)
                if pulled.total_s < found.total_s:
                    found = pulled
        return found

    def _computing(self, worker: WorkerState, cached: int, source: tuple[str, float] | None, alone: bool) -> Computing:
        """With `cached` tokens there when it begins, which come from `source` in so many seconds."""
        request, cost = self._request, worker.cost
        streams = worker.streams
        shared_s = streams * cost.decode_token_s + worker.context_tokens * cost.context_token_s + cost.step_s
        chunk = max(1, worker.step_tokens - streams)
        queue_s = 0.0
        if worker.prefill_tokens:
            head_s = worker.head_tokens * (cost.prefill_token_s + shared_s / chunk)
            head_s += worker.head_pairs * cost.prefill_pair_s
            queue_s = worker.prefill_tokens * (cost.prefill_token_s + shared_s / chunk)
            queue_s += worker.prefill_pairs * cost.prefill_pair_s
            queue_s = max(0.0, queue_s - min(head_s, self._cluster.now_s - worker.head_since_s))
        tokens = request.prompt_tokens - cached
        steps = -(-tokens // chunk)
        pairs = self._prompt_pairs - cached * (cached + 1) // 2
        work_s = tokens * cost.prefill_token_s + pairs * cost.prefill_pair_s
        prefill_s = work_s + steps * shared_s
        pull_s = max(0.0, source[1] - queue_s) if source else 0.0
        others_s = streams * work_s + self._waiting[worker.role] * prefill_s
        evict_s = 0.0 if alone else self._evict_s(worker, request.prompt_tokens)
        return Computing(
            queue_s + pull_s + prefill_s + others_s + evict_s,
            queue_s,
            pull_s,
            prefill_s,
            others_s,
            evict_s,
            cached,
            tokens - (steps - 1) * chunk,
            source[0] if source else None,
        )

    def decoding(self, worker: WorkerState) -> Decoding:
        """The answer on `worker`: its steps are longer by what this request adds to them, for all who share them."""
        request, cost = self._request, worker.cost
        output = request.output_tokens
        context = request.prompt_tokens + output / 2
        added_s = request.num_answers * (cost.decode_token_s + context * cost.context_token_s)
        step_s = cost.step_s + worker.streams * cost.decode_token_s + worker.context_tokens * cost.context_token_s
        decode_s = output * (step_s + added_s)
        others_s = output * worker.streams * added_s
        evict_s = self._evict_s(worker, request.prompt_tokens + output * request.num_answers)
        admit_s = 0.0
        if worker.num_tokens:
            missing = request.prompt_tokens + 1 - request.cached_tokens.get(worker.url, 0) - worker.free_tokens
            if missing > 0:
                admit_s = self._admit_s(worker, missing, step_s)
        return Decoding(decode_s + others_s + evict_s, decode_s, others_s, evict_s, admit_s)

    def _admit_s(self, worker: WorkerState, missing: int, step_s: float) -> float:
        """Until so many tokens are free: streams end evenly over twice the time that is left to them on average."""
        if missing > worker.context_tokens or not worker.streams:
            return _NEVER_S
        return missing / worker.context_tokens * 2 * worker.output_tokens / worker.streams * step_s

    def _evict_s(self, worker: WorkerState, stored: int) -> float:
        """Of storing so many tokens: what falls out of the prefix cache would have been reused as often as usual."""
        stored -= self._request.cached_tokens.get(worker.url, 0)
        evicted = min(stored - (worker.free_tokens - worker.evictable_tokens), worker.evictable_tokens)
        return evicted * self._cluster.reuse * worker.cost.prefill_token_s if evicted > 0 else 0.0

    def _transfer_s(self, prefill: WorkerState, decode: WorkerState, computing: Computing) -> float:
        """What remains after the first token: the last step's KV, or more if the link is slower than computing."""
        missing = self._request.prompt_tokens - self._request.cached_tokens.get(decode.url, 0)
        if missing <= 0:
            return 0.0
        link = self._cluster.link(prefill, decode)
        return max(link.seconds(min(missing, computing.last_tokens)), link.seconds(missing) - computing.prefill_s)

    def _find_holders(self) -> list[tuple[int, WorkerState]]:
        """Who has cached KV of this prompt, the most first; the last token is always computed."""
        cached, most = self._request.cached_tokens, self._request.prompt_tokens - 1
        holders = [
            (min(cached[worker.url], most), worker)
            for worker in (*self._cluster.prefill, *self._cluster.decode)
            if cached.get(worker.url, 0) > 0 and worker.url not in self._request.excluded
        ]
        return sorted(holders, key=lambda holder: -holder[0])


def _by_total(item: tuple[Computing | Decoding, WorkerState]) -> float:
    return item[0].total_s
