"""The operator's Prometheus metrics, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One instance per operator."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconcile_seconds = Histogram(
            "penstock_operator_reconcile_seconds",
            "One look at one LLMDeployment, with what it had to change",
            ["changed"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.reconcile_errors = Counter(
            "penstock_operator_reconcile_errors", "Looks that failed, by error", ["error"], registry=self.registry
        )
        self.queue_depth = Gauge(
            "penstock_operator_queue_depth", "LLMDeployments that wait for a look", registry=self.registry
        )
        self.api_calls = Counter(
            "penstock_operator_api_calls",
            "Requests to the API server, as its access rules see them",
            ["verb", "resource", "status"],
            registry=self.registry,
        )
        self.api_seconds = Histogram(
            "penstock_operator_api_seconds",
            "Duration of requests to the API server",
            ["method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.actions = Counter(
            "penstock_operator_actions", "Changes made to objects", ["action", "kind"], registry=self.registry
        )
        self.deployments = Gauge("penstock_operator_deployments", "LLMDeployments seen", registry=self.registry)
        self.objects = Gauge("penstock_operator_objects", "Owned objects seen", ["kind"], registry=self.registry)
        self.watch_age = Gauge(
            "penstock_operator_watch_age_seconds",
            "Since a watch last proved to be alive",
            ["kind"],
            registry=self.registry,
        )
        self.relists = Counter("penstock_operator_relists", "Lists beyond the first", ["kind"], registry=self.registry)
        self.leading = Gauge("penstock_operator_leading", "1 while this process leads", registry=self.registry)

    def render(self) -> bytes:
        """The text of /metrics."""
        return generate_latest(self.registry)
