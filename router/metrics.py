"""The router's Prometheus metrics, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """One instance per router."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "penstock_router_requests", "API requests by their outcome", ["endpoint", "status"], registry=self.registry
        )
        self.running = Gauge("penstock_router_running_requests", "API requests in progress", registry=self.registry)
        self.first_token = Histogram(
            "penstock_router_time_to_first_token_seconds",
            "From the request's body to its first output token",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "penstock_router_request_duration_seconds",
            "From the request's body to the end of its answer",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_wait = Histogram(
            "penstock_router_queue_wait_seconds",
            "How long those requests waited in the router that could not be placed at once",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queued_requests = Gauge(
            "penstock_router_queued_requests", "Prompts that wait in the router for their turn", registry=self.registry
        )
        self.queued_tokens = Gauge(
            "penstock_router_queued_tokens",
            "Work that they are expected to be: prompt tokens that are not cached, and answer tokens twice",
            registry=self.registry,
        )
        self.refusals = Counter(
            "penstock_router_refused_requests",
            "Requests refused at once because they would wait too long, by the code of their error",
            ["reason"],
            registry=self.registry,
        )
        self.key_file_errors = Counter(
            "penstock_router_key_file_errors",
            "Times the API key file had changed and could not be used",
            registry=self.registry,
        )
        self.prompt_tokens = Counter("penstock_router_prompt_tokens", "Prompt tokens", registry=self.registry)
        self.cached_tokens = Counter(
            "penstock_router_cached_prompt_tokens", "Prompt tokens nobody had to compute", registry=self.registry
        )
        self.output_tokens = Counter("penstock_router_output_tokens", "Tokens in answers", registry=self.registry)
        self.ttft_error = Histogram(
            "penstock_router_ttft_prediction_error_seconds",
            "Predicted less measured time from placement to first token, without sign",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.regret = Counter(
            "penstock_router_placement_regret_seconds",
            "Time by which first tokens came later than another choice was predicted to bring them, estimated from one "
            "placement in 16",
            registry=self.registry,
        )
        self.drift_alarm = Gauge(
            "penstock_router_drift_alarm",
            "1 while predictions of this are off and placement is by load only",
            ["of"],
            registry=self.registry,
        )
        self.refused_timings = Gauge(
            "penstock_router_worker_refused_timings",
            "Step timings of a worker that were left out: impossible, or nothing like those of its kind",
            ["worker"],
            registry=self.registry,
        )
        self.placements = Counter("penstock_router_placements", "Placements by kind", ["kind"], registry=self.registry)
        self.replacements = Counter(
            "penstock_router_failed_placements", "Placements that failed, by reason", ["reason"], registry=self.registry
        )
        self.event_errors = Counter(
            "penstock_router_event_errors",
            "Times a worker's event stream was given up: lost, gap, nonsense, or fault where the router is to blame",
            ["worker", "reason"],
            registry=self.registry,
        )
        self.predictions = Counter(
            "penstock_router_predicted_requests",
            "Requests by how the cached prompt tokens compare with what the router predicted: exact, fewer or more",
            ["outcome"],
            registry=self.registry,
        )
        self.index_blocks = Gauge(
            "penstock_router_index_blocks", "Cached blocks that the prefix index knows", registry=self.registry
        )
        self.discovery_errors = Counter(
            "penstock_router_discovery_errors",
            "Times the EndpointSlices could not be listed or watched",
            registry=self.registry,
        )
        self.redis_ready = Gauge(
            "penstock_router_redis_ready", "1 while the Redis that routers share answers", registry=self.registry
        )
        self.redis_errors = Counter(
            "penstock_router_redis_errors",
            "Times Redis gave no answer in time, so that this router went by its own view",
            registry=self.registry,
        )
        self.worker_ready = Gauge(
            "penstock_router_worker_ready", "1 while the worker is ready", ["worker", "role"], registry=self.registry
        )
        self.worker_odd = Gauge(
            "penstock_router_worker_odd",
            "1 for a worker that is not used because it serves another model than the router (what is model), and for "
            "the workers of one revision whose weights differ, so that answers do (what is weights)",
            ["worker", "role", "what"],
            registry=self.registry,
        )
        self.worker_streams = Gauge(
            "penstock_router_worker_streams", "Open streams per worker", ["worker", "role"], registry=self.registry
        )

    def render(self) -> bytes:
        """The text of /metrics."""
        return generate_latest(self.registry)
