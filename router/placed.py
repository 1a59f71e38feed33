"""A placement with what was booked for it."""

from dataclasses import dataclass

from penstock.router.cluster import Reservation
from penstock.router.flow.tenants import ANYONE, Tenant
from penstock.router.index.keys import PromptKeys
from penstock.router.index.prefix_index import Expectation
from penstock.router.placement.journal import Decision


@dataclass(slots=True)
class Placed:
    """One attempt of one request."""

    decode: str
    prefill: str | None
    source: str | None
    revision: str
    reservation: Reservation
    keys: PromptKeys
    """Of the prompt."""
    cached_tokens: int
    """Prompt tokens that the computing worker is predicted to find in its cache."""
    as_of: int
    """Of how many evictions of the computing worker was known when this was predicted."""
    source_as_of: int
    """The same of the source."""
    expected: list[Expectation]
    """What its workers will hold because of it."""
    decision: Decision
    placed_at: float
    """On the event loop's clock."""
    arrivals: dict[str, int]
    """Of its workers, as the cluster counts them: a worker with another number has left since, and come back."""
    tenant: Tenant = ANYONE
    work: float = 0.0
    """Charged to the tenant, in tokens."""
    output_work: float = 0.0
    """The part of it that is expected to be the answer's."""
    num_output: int = 0
    priority: int = 0
    """Among the worker's requests."""
    is_test: bool = False
    """It was predicted to be too late (turns.Retest)."""
    is_resume: bool = False
    is_accepted: bool = False
    is_computed: bool = False
