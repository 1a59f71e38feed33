"""What goes into the puller and what comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from penstock.protocol import BlockTicket


@dataclass(frozen=True, slots=True)
class Pull:
    """One ticket's blocks, or some of them: (ticketed block, local block it goes to). A request may have several.

    From `submit` to the event that names them, the local blocks belong to the puller.
    """

    request_id: str
    generation: str
    blocks: Sequence[tuple[BlockTicket, int]]


@dataclass(frozen=True, slots=True)
class PullVerified:
    """The blocks of one `Pull` hold exactly what their tickets promised."""

    request_id: str
    local_blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PullFailed:
    """One `Pull` failed. Its blocks are free, except `quarantined`: late bytes may still overwrite those."""

    request_id: str
    reason: str
    local_blocks: tuple[int, ...]
    quarantined: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QuarantineReleased:
    """Nothing can land in these blocks any more: they are free."""

    local_blocks: tuple[int, ...]


Event: TypeAlias = PullVerified | PullFailed | QuarantineReleased


@dataclass(slots=True)
class Counters:
    """Totals since the start, written by the puller's thread; `quarantined_blocks` is the number now."""

    blocks: int = 0
    bytes: int = 0
    seconds: float = 0.0
    """From submit to verified, summed over pulls."""
    failed: int = 0
    fenced: int = 0
    quarantined_blocks: int = 0
