"""Every error Penstock raises on purpose, in one tree.

PenstockError
├── ConfigError           a flag, file or model folder is wrong: refused at start
│   ├── ModelError        the model folder cannot be served (file and reason)
│   └── MemoryPlanError   weights and KV cache do not fit (with the arithmetic)
├── RequestError          the caller's request is wrong (HTTP 4xx, never retried; a client that was slow, 408, may)
└── RetryableError        nothing is wrong with the request; try again (HTTP 503 or an error frame)
    ├── RateLimited       the caller asks for more than its quota or its share (HTTP 429)
    ├── PrefillLost       the prefill worker was lost, late or sent something invalid
    │   └── PrefillDied   it died or got stuck with the request
    ├── PrefillRefused    the prefill worker is well but does not take this request
    ├── WorkerLost        a worker was lost or is stuck
    │   └── WorkerSilent  it stands still, or the way to it does
    ├── Overloaded        no capacity within the request's deadline
    ├── TransferError     a KV transfer failed
    ├── DeadlineExceeded  the request's deadline passed before its answer was complete
    └── Stopping          the process is shutting down
"""


class PenstockError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(PenstockError):
    """A flag, file or model folder is wrong; the process refuses to start."""


class ModelError(ConfigError):
    """The model folder cannot be served."""


class MemoryPlanError(ConfigError):
    """Weights and KV cache do not fit the memory budget."""


class RequestError(PenstockError):
    """The request is wrong and would be wrong anywhere. `field` names the offending part."""

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.field = field
        self.code = code
        self.status = status


class RetryableError(PenstockError):
    """The request is fine and may succeed elsewhere or later. `retry_after_s` says when, if that is known."""

    code = "retryable"
    status = 503

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(RetryableError):
    """The caller asks for more than its quota or its share."""

    code = "rate_limit_exceeded"
    status = 429


class PrefillLost(RetryableError):
    """The prefill worker was lost, late or sent something invalid."""

    code = "prefill_lost"


class PrefillDied(PrefillLost):
    """The prefill worker died, got stuck or sent what is no frame while it had the request, which may be why."""

    code = "prefill_died"


class PrefillRefused(RetryableError):
    """The prefill worker is well but does not take this request: too long for its memory, or it is draining."""

    code = "prefill_refused"


class WorkerLost(RetryableError):
    """A worker died, fell silent or is stuck."""

    code = "worker_lost"


class WorkerSilent(WorkerLost):
    """Nothing came for too long: its process, its machine or the way to it stands still. A request hardly does that: of
    a step that does not end an engine's other thread tells."""


class Overloaded(RetryableError):
    """No capacity within the request's deadline."""

    code = "overloaded"


class TransferError(RetryableError):
    """A KV transfer failed."""

    code = "transfer_failed"


class DeadlineExceeded(RetryableError):
    """The request's deadline passed before its answer was complete."""

    code = "deadline_exceeded"


class Stopping(RetryableError):
    """The process is shutting down: it takes no new request, or its grace time is over."""

    code = "stopping"


def reason_of(error: BaseException) -> str:
    """What `error` says, or its kind: many a timeout and a closed connection come without words."""
    return str(error) or type(error).__name__
