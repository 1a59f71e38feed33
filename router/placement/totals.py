"""What one router has in flight on one worker, in numbers that add up over routers. Pure."""

from msgspec import Struct


class Totals(Struct, frozen=True, array_like=True, gc=False):
    """Sums of a router's bookings. Routers of several releases tell each other: only append fields, with defaults."""

    prefill_tokens: int = 0
    """Prompt tokens still to be computed there."""
    prefill_pairs: int = 0
    """Query-key pairs of these tokens."""
    prompts: int = 0
    """Queued or being computed there."""
    guests: int = 0
    """Of them, those whose answers other workers stream."""
    streams: int = 0
    """Sequences that decode there, or will when their prompt is computed."""
    context_tokens: int = 0
    """KV tokens that these hold."""
    output_tokens: int = 0
    """Still expected from there."""
    arriving_tokens: int = 0
    """KV of prompts that are booked and not computed yet."""

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(getattr(self, name) + getattr(other, name) for name in Totals.__struct_fields__))


NOTHING = Totals()
