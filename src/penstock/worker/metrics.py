"""What `/metrics` shows: the engine's load and counters, and latencies as the front measures them.

Every figure has a `penstock_*` or a `vllm:*` name; the latter are those that endpoint pickers and dashboards made for
vLLM read, with vLLM's meanings.
"""

import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.engine.messages import Stats
from penstock.protocol import Finished, Load, Tokens
from penstock.telemetry.trace import Trace, Value
from penstock.worker.bridge import EngineBridge

_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)
_INTER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)


class WorkerMetrics:
    """The registry of one worker."""

    def __init__(self, bridge: EngineBridge, role: str, model: str) -> None:
        registry = CollectorRegistry()
        registry.register(_EngineCollector(bridge, role, model))
        ProcessCollector(registry=registry)

        def histogram(name: str, sentence: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, sentence, ("model_name",), buckets=buckets, registry=registry).labels(model)

        self.first_token_s = histogram(
            "vllm:time_to_first_token_seconds", "Seconds from request to first token.", _FIRST_TOKEN_S
        )
        self.request_s = histogram(
            "vllm:e2e_request_latency_seconds", "Seconds from request to last token.", _REQUEST_S
        )
        self.inter_token_s = histogram(
            "vllm:inter_token_latency_seconds", "Seconds between the tokens of a sample.", _INTER_TOKEN_S
        )
        self.finished = Counter(
            "vllm:request_success", "Finished samples by reason.", ("model_name", "finished_reason"), registry=registry
        )
        self._model = model
        self._registry = registry

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def count_finished(self, reason: str) -> None:
        self.finished.labels(self._model, reason).inc()


class RequestMeter:
    """Measures one request, beginning now, from the frames that go by: for metrics, and for its trace."""

    def __init__(self, metrics: WorkerMetrics, trace: Trace) -> None:
        self._metrics = metrics
        self._trace = trace
        self._start = time.perf_counter()
        self._first_at: float | None = None
        self._num_tokens = 0
        self._last_of_sample: dict[int, float] = {}

    def observe(self, frames: Iterable[msgspec.Struct]) -> None:
        """Takes a batch of frames that is about to be sent."""
        now = time.perf_counter()
        for frame in frames:
            if isinstance(frame, Tokens):
                self._observe_tokens(frame, now)
            elif isinstance(frame, Finished):
                self._metrics.count_finished(frame.reason)
                self._metrics.request_s.observe(now - self._start)

    def end(self) -> dict[str, Value]:
        """The request is over, in whatever way. Returns what the log says of it."""
        now = time.perf_counter()
        facts: dict[str, Value] = {"output_tokens": self._num_tokens, "seconds": round(now - self._start, 6)}
        if self._first_at is not None:
            self._trace.record("decode", now - self._first_at, tokens=self._num_tokens)
            facts["first_token_s"] = round(self._first_at - self._start, 6)
        return facts

    def _observe_tokens(self, frame: Tokens, now: float) -> None:
        last = self._last_of_sample.get(frame.sample)
        if last is not None:
            self._metrics.inter_token_s.observe((now - last) / len(frame.tokens))
        elif self._first_at is None:
            self._first_at = now
            self._metrics.first_token_s.observe(now - self._start)
            self._trace.record("first_token", now - self._start)
        self._last_of_sample[frame.sample] = now
        self._num_tokens += len(frame.tokens)


class _EngineCollector(Collector):
    """Turns the engine's latest load and counters into metrics whenever they are scraped."""

    def __init__(self, bridge: EngineBridge, role: str, model: str) -> None:
        self._bridge = bridge
        self._names = ("model_name", "role")
        self._values = (model, role)

    def collect(self) -> Iterator[Metric]:
        load, stats = self._bridge.load, self._bridge.stats
        yield self._gauge("penstock_open_streams", "Requests with an open stream.", self._bridge.num_streams)
        yield self._gauge("penstock_engine_healthy", "1 while the engine lives.", self._bridge.trouble() is None)
        yield from self._of_load(load)
        yield from self._of_stats(stats)
        limits, peer = self._bridge.started.limits, self._bridge.started.peer
        info = GaugeMetricFamily(
            "vllm:cache_config_info",
            "How the KV cache is set up.",
            labels=(*self._names, "block_size", "num_gpu_blocks", "cache_dtype", "transport", "generation"),
        )
        shape = (str(limits.block_size), str(limits.num_blocks), peer.layout.kv_dtype)
        info.add_metric((*self._values, *shape, self._bridge.started.transport, peer.generation), 1)
        yield info

    def _of_load(self, load: Load) -> Iterator[Metric]:
        used = 1 - load.free_blocks / load.num_blocks if load.num_blocks else 0.0
        yield self._gauge("vllm:num_requests_running", "Sequences in the batch.", load.running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences that wait for room.", load.waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Used part of the KV cache, 0 to 1.", used)
        yield self._gauge("penstock_leased_requests", "Prompts held for other workers to read.", load.leased)
        yield self._gauge("penstock_kv_blocks", "Blocks in the KV cache.", load.num_blocks)
        yield self._gauge("penstock_kv_blocks_free", "Blocks that hold nothing in use.", load.free_blocks)
        yield self._gauge(
            "penstock_kv_blocks_quarantined", "Blocks that a late read may still write to.", load.quarantined_blocks
        )

    def _of_stats(self, stats: Stats) -> Iterator[Metric]:
        prompt = stats.prompt_tokens + stats.cached_tokens
        yield self._counter("vllm:prompt_tokens", "Prompt tokens computed or found in the prefix cache.", prompt)
        yield self._counter("vllm:generation_tokens", "Tokens generated.", stats.generated_tokens)
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", prompt)
        yield self._counter("vllm:prefix_cache_hits", "Prompt tokens found there.", stats.cached_tokens)
        yield self._counter("vllm:num_preemptions", "Sequences set back to free blocks.", stats.preemptions)
        yield self._counter("penstock_prefill_tokens", "Prompt tokens computed here.", stats.prompt_tokens)
        yield self._counter("penstock_pulled_blocks", "KV blocks read from other workers.", stats.pulled_blocks)
        yield self._counter("penstock_pulled_bytes", "Bytes of KV read from other workers.", stats.pulled_bytes)
        yield self._counter("penstock_pull_seconds", "Seconds spent reading KV blocks.", stats.pull_seconds)
        yield self._counter("penstock_sourced_blocks", "KV blocks read from others' caches.", stats.sourced_blocks)
        yield self._counter(
            "penstock_unsourced_requests", "Requests whose source was lost, late or had nothing.", stats.missed_sources
        )
        yield self._counter("penstock_fenced_pulls", "Reads refused as the blocks had changed.", stats.fenced_pulls)
        yield self._counter("penstock_failed_pulls", "Reads that failed or came too late.", stats.failed_pulls)
        yield self._gauge(
            "penstock_silent_peers",
            "Workers not read from: a read timed out and none landed since.",
            stats.silent_peers,
        )

    def _gauge(self, name: str, sentence: str, value: float) -> Metric:
        metric = GaugeMetricFamily(name, sentence, labels=self._names)
        metric.add_metric(self._values, value)
        return metric

    def _counter(self, name: str, sentence: str, value: float) -> Metric:
        metric = CounterMetricFamily(name, sentence, labels=self._names)
        metric.add_metric(self._values, value)
        return metric
