"""The router's settings: each with its default, unit and reason, written once."""

from dataclasses import dataclass

from penstock.config import check_url, option
from penstock.errors import ConfigError
from penstock.telemetry.config import LogConfig, TraceConfig


@dataclass(frozen=True, kw_only=True)
class RouterConfig(LogConfig, TraceConfig):
    """What `penstock router` can be told. Worker lists are comma-separated base URLs in flags and environment."""

    model: str = option("", "Folder of the model: its tokenizer, chat template and configs (weights are not read).")
    served_model_name: str = option(
        "", "Name of the model in the API; when empty, the folder's name or the Hugging Face id."
    )
    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.")
    prefill: str = option("", "Base URLs of the prefill workers, separated by commas.")
    decode: str = option("", "Base URLs of the decode workers, separated by commas.")
    discover: str = option(
        "", "In Kubernetes, instead of the two lists: label selector of the EndpointSlices that list the workers."
    )
    beside: str = option(
        "",
        "Base URL of the decode worker that this router stands beside, as an endpoint of a gateway: requests are "
        "decoded there, /ready follows it, and /metrics shows its metrics too.",
    )
    ext_proc_port: int | None = option(
        None,
        "Port of an endpoint picker for gateways (Envoy's ext-proc over gRPC), which places their requests as this "
        "router places its own; none has no picker.",
    )
    ext_proc_tls: str = option("", "Folder with tls.crt and tls.key for that port; without one it speaks plain HTTP/2.")
    endpoint_port: int | None = option(
        None, "Port of the router beside each decode worker, where a gateway finds what the picker has picked."
    )
    max_context_tokens: int | None = option(
        None,
        "Longest prompt plus answer; the model's own limit when none. Workers with less memory lower it by themselves.",
        unit="tokens",
    )
    max_body_bytes: int = option(
        8 * 2**20, "Largest request body. A million token ids as JSON fit into 8 MiB.", unit="bytes"
    )
    max_bodies_bytes: int = option(
        512 * 2**20, "Memory for all request bodies that are being read or parsed, together.", unit="bytes"
    )
    body_timeout_s: float = option(60.0, "How long a request body may take to arrive.", unit="seconds")
    max_header_bytes: int = option(2**16, "Largest request line and headers.", unit="bytes")
    header_timeout_s: float = option(
        30.0, "How long headers may take, and a new connection may stay silent.", unit="seconds"
    )
    max_connections: int = option(
        10_000, "Most connections of clients; more are answered with 503.", unit="connections"
    )
    default_max_tokens: int | None = option(
        None, "Answer limit of a request that names none; the rest of the context when none.", unit="tokens"
    )
    max_samples: int = option(128, "Most answers one request may ask for: its `n` times its prompts.")
    timeout_s: float = option(
        600.0, "Deadline of a request that names none, by a `timeout` header or as SDKs do.", unit="seconds"
    )
    max_timeout_s: float = option(3600.0, "Longest deadline a `timeout` header may ask for.", unit="seconds")
    silence_s: float = option(
        15.0,
        "Longest pause of a stream, also before its first token: then comes a comment, sooner for a client whose SDK "
        "says that it waits less than twice as long.",
        unit="seconds",
    )
    keys: str = option("", "File with the hashes of API keys and their tenants' quotas; without one anybody may ask.")
    max_wait_s: float = option(
        60.0,
        "A request that is predicted to wait longer for its turn is refused at once, with the time when to come back.",
        unit="seconds",
    )
    max_queued: int = option(
        4096,
        "Most prompts that wait for their turn; then the tenant with most waiting makes room; who came back as told "
        "does not before there are twice as many.",
        unit="requests",
    )
    max_queued_tokens: int = option(
        16_000_000,
        "Most tokens of prompts that wait, together, and of those for which no worker is there: about 50 bytes each. "
        "Must hold the longest prompt.",
        unit="tokens",
    )
    worker_ahead_s: float = option(
        0.25,
        "Prompt work that a worker is given ahead while more waits; too little lets workers run dry between requests, "
        "too much leaves tenants' order to chance.",
        unit="seconds",
    )
    max_attempts: int = option(4, "How often one request is placed without progress before it fails.")
    worker_wait_s: float = option(
        1.5, "How long a request waits for a worker to become ready before it fails.", unit="seconds"
    )
    stream_wait_s: float = option(
        30.0,
        "The same for an answer that has begun: its client would have to start all over.",
        unit="seconds",
    )
    poll_s: float = option(
        0.25, "Pause between two looks at a worker's /ready; a lost worker is back after at most two.", unit="seconds"
    )
    shutdown_grace_s: float = option(30.0, "How long open streams may go on after SIGTERM.", unit="seconds")
    shutdown_delay_s: float = option(
        0.0, "How long new requests are still served after SIGTERM while load balancers notice.", unit="seconds"
    )
    policy: str = option(
        "seconds",
        "How workers are chosen: by predicted seconds, or least-work, which hands over every prompt but the shortest.",
        choices=("seconds", "least-work"),
    )
    min_prefill_tokens: int = option(
        16,
        "Uncached prompt tokens from which least-work uses a prefill worker: less than a block is no hand-over.",
        unit="tokens",
    )
    index_blocks: int = option(
        5_000_000,
        "Most cached blocks that the prefix index remembers, in equal shares for all workers; each takes "
        "up to 200 bytes, and 130 more for each further worker that has it.",
        unit="blocks",
    )
    secret: str = option("", "Key of what workers are told of tenants' salts, equal on all routers of a deployment.")
    redis: str = option(
        "",
        "URL of a Redis (redis://HOST:6379/0) through which several routers share quotas and what is in flight. It may "
        "be lost at any time. A password belongs into the environment: PENSTOCK_FLAG_REDIS.",
    )
    redis_prefix: str = option(
        "penstock", "What this deployment's keys in Redis begin with: the same on all of its routers, and on no other."
    )
    turn_cache_bytes: int = option(
        128 * 2**20,
        "Memory for the tokens of messages: of a conversation's next turn only what is new is tokenized.",
        unit="bytes",
    )
    encode_inline_chars: int = option(
        8_192, "Longer texts are tokenized in a thread, so that no stream waits more than a few ms.", unit="characters"
    )

    def __post_init__(self) -> None:
        if (_urls(self.prefill) + _urls(self.decode)) and self.discover:
            raise ConfigError("workers are either listed, by --prefill and --decode, or watched, by --discover")
        if self.ext_proc_port is not None and self.endpoint_port is None:
            raise ConfigError("--ext-proc-port needs --endpoint-port: the port of the routers beside decode workers")
        if self.beside and not self.discover and self.beside not in self.decode_urls:
            raise ConfigError(f"--beside {self.beside} must be one of the URLs of --decode")
        for name in (
            "max_body_bytes",
            "max_samples",
            "max_attempts",
            "index_blocks",
            "max_queued",
            "max_queued_tokens",
            "max_connections",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "timeout_s",
            "max_timeout_s",
            "silence_s",
            "body_timeout_s",
            "header_timeout_s",
            "max_wait_s",
            "worker_ahead_s",
            "worker_wait_s",
            "stream_wait_s",
            "poll_s",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be more than 0 seconds, not {getattr(self, name)}")

    @property
    def prefill_urls(self) -> tuple[str, ...]:
        return _urls(self.prefill)

    @property
    def decode_urls(self) -> tuple[str, ...]:
        return _urls(self.decode)


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    for url in urls:
        check_url("worker URL", url)
    return urls
