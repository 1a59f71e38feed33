"""What one router has in flight on one worker, in numbers that add up over routers. Pure."""

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

Requests: TypeAlias = Annotated[int, Meta(ge=0, le=10**6)]
Tokens: TypeAlias = Annotated[int, Meta(ge=0, le=10**12)]
Pairs: TypeAlias = Annotated[int, Meta(ge=0, le=10**18)]
"""What another router may say that it has on one worker; more is refused when it is decoded."""


class Totals(Struct, frozen=True, array_like=True, gc=False):
    """Sums of a router's bookings. Routers of several releases tell each other: only append fields, with defaults."""

    prefill_tokens: Tokens = 0
    """Prompt tokens still to be computed there."""
    prefill_pairs: Pairs = 0
    """Query-key pairs of these tokens."""
    prompts: Requests = 0
    """Queued or being computed there."""
    guests: Requests = 0
    """Of them, those whose answers other workers stream."""
    streams: Requests = 0
    """Sequences that decode there, or will when their prompt is computed."""
    context_tokens: Tokens = 0
    """KV tokens that these hold."""
    output_tokens: Tokens = 0
    """Still expected from there."""
    arriving_tokens: Tokens = 0
    """KV of prompts that are booked and not computed yet."""

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(getattr(self, name) + getattr(other, name) for name in Totals.__struct_fields__))


NOTHING = Totals()
