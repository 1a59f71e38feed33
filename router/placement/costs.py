"""What work costs in seconds: engine steps on one kind of worker, and moving KV over one class of link.

The formulas are linear in what was measured, so that they can be fitted online (fit.py). A step reads all weights once,
computes its rows, and reads the KV of the sequences it decodes; a prompt's attention grows with the square of its
length, counted in pairs of a query and a key.
"""

from msgspec import Struct


def attention_pairs(tokens: int, cached: int = 0) -> int:
    """Query-key pairs of computing the tokens [cached, tokens) of one sequence."""
    return (tokens * (tokens + 1) - cached * (cached + 1)) // 2


class StepCost(Struct, frozen=True, gc=False):
    """One kind of worker. The defaults are what arithmetic gives for a model of 8 B parameters in bf16 on one A100
    (1.5 TB/s, 160 TFLOP/s reached): a prior for the first seconds. (A Struct: made anew for each worker whenever its
    kind's is.)"""

    step_s: float = 1e-2
    """Every step, however small: the weights are read."""
    prefill_token_s: float = 1e-4
    """One row of a prompt."""
    prefill_pair_s: float = 3.5e-9
    """One query-key pair of a prompt's attention."""
    decode_token_s: float = 1e-5
    """One row of a sequence that decodes."""
    context_token_s: float = 9e-8
    """One token of KV read for a sequence that decodes."""

    def seconds(
        self,
        prefill_tokens: float = 0,
        prefill_pairs: float = 0,
        decode_tokens: float = 0,
        context_tokens: float = 0,
        steps: float = 1,
    ) -> float:
        """Of that much work in `steps` steps."""
        return (
            steps * self.step_s
            + prefill_tokens * self.prefill_token_s
            + prefill_pairs * self.prefill_pair_s
            + decode_tokens * self.decode_token_s
            + context_tokens * self.context_token_s
        )

    def times(self, factor: float) -> "StepCost":
        """Of a worker that takes `factor` times as long."""
        return StepCost(
            factor * self.step_s,
            factor * self.prefill_token_s,
            factor * self.prefill_pair_s,
            factor * self.decode_token_s,
            factor * self.context_token_s,
        )


class LinkCost(Struct, frozen=True, gc=False):
    """Moving KV between two workers. Prior: 128 KiB per token (8 B parameters, bf16) at 10 GB/s."""

    latency_s: float = 2e-3
    """Of one read, however small."""
    token_s: float = 1.3e-5
    """Per token of KV."""

    def seconds(self, tokens: float) -> float:
        return self.latency_s + tokens * self.token_s if tokens > 0 else 0.0


PRIOR_STEP = StepCost()
PRIOR_LINK = LinkCost()
