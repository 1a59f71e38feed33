"""Explains a decision: every candidate with its seconds, part by part, as one table."""

from collections.abc import Mapping
from dataclasses import fields

from msgspec import Struct

from penstock.router.placement.journal import Decision, regret_s
from penstock.router.placement.objective import Seconds
from penstock.router.policy import Placement, Prediction

MOST_CANDIDATES = 20
PARTS = tuple(field.name for field in fields(Prediction) if field.name.endswith("_s"))


class Candidate(Struct, frozen=True, omit_defaults=True):
    """One way to place the request."""

    decode: str
    prefill: str | None
    source: str | None
    cached_tokens: int | None
    ttft_s: float | None
    total_s: float | None
    parts: dict[str, float]
    """This and the three before are None and empty where the policy predicts nothing."""
    chosen: bool = False


class Explanation(Struct, frozen=True):
    """The answer of the router's /explain."""

    request_id: str
    prompt_tokens: int
    """Without those of the answer so far."""
    output_tokens: int
    """Expected when it was placed."""
    by: str
    ttft_s: float | None
    cached_tokens: int | None
    regret_s: float | None
    num_candidates: int
    candidates: tuple[Candidate, ...]
    """The chosen one first, then the best others."""
    not_used: dict[str, str] = {}
    """Workers that are not ready now, and why."""
    answered_tokens: int = 0
    """Of one answer, when it was placed again."""
    num_answers: int = 1
    after: str = ""
    """How the placement before this one failed, where there was one."""
    failure: str = ""
    """How this one did."""


def explain(decision: Decision, not_used: Mapping[str, str]) -> Explanation:
    """All of a decision is in its snapshot, so it is computed again; `not_used` is of now."""
    chosen = decision.placement
    candidates = Seconds().candidates(decision.request, decision.cluster)
    others = [each for each in candidates if (each.decode, each.prefill) != (chosen.decode, chosen.prefill)]
    return Explanation(
        request_id=decision.request_id,
        prompt_tokens=decision.request.prompt_tokens - decision.answered_tokens,
        output_tokens=decision.request.output_tokens,
        by=chosen.by,
        ttft_s=decision.ttft_s,
        cached_tokens=decision.cached_tokens,
        regret_s=regret_s(decision),
        num_candidates=len(candidates),
        candidates=tuple(_candidate(each, chosen=each is chosen) for each in (chosen, *others[: MOST_CANDIDATES - 1])),
        not_used=dict(not_used),
        answered_tokens=decision.answered_tokens,
        num_answers=decision.request.num_answers,
        after=decision.after,
        failure=decision.failure,
    )


def _candidate(placement: Placement, *, chosen: bool) -> Candidate:
    workers, prediction = (placement.decode, placement.prefill, placement.source), placement.prediction
    if prediction is None:
        return Candidate(*workers, None, None, None, {}, chosen)
    parts = {name: getattr(prediction, name) for name in PARTS}
    return Candidate(*workers, prediction.cached_tokens, prediction.ttft_s, prediction.total_s, parts, chosen)


def table(explanation: Explanation) -> str:
    """For people: milliseconds, the chosen candidate marked with a star."""
    names = [name.removesuffix("_s") for name in PARTS]
    lines = [("", "decode", "prefill", "source", "cached", *names, "ttft", "total")]
    for each in explanation.candidates:
        seconds = [*(each.parts.get(name) for name in PARTS), each.ttft_s, each.total_s]
        workers = [each.decode, each.prefill or "-", each.source or "-"]
        cached = "-" if each.cached_tokens is None else str(each.cached_tokens)
        lines.append(("*" if each.chosen else "", *workers, cached, *map(_milliseconds, seconds)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*_story(explanation), "", *rows])


def _story(explanation: Explanation) -> list[str]:
    so_far = f" and {explanation.answered_tokens} of its answer" if explanation.answered_tokens else ""
    each = f", for each of {explanation.num_answers} answers" if explanation.num_answers > 1 else ""
    story = [
        f"{explanation.request_id}: {explanation.prompt_tokens} prompt tokens{so_far}, about "
        f"{explanation.output_tokens}{' more' if so_far else ''} to answer{each}; placed by {explanation.by}; "
        f"{explanation.num_candidates} candidates, all times in milliseconds"
    ]
    if explanation.after:
        story.append(f"this is its last placement; the one before failed: {explanation.after}")
    if explanation.ttft_s is not None:
        story.append(_came(explanation, explanation.ttft_s))
    if explanation.failure:
        story.append(f"it failed: {explanation.failure}")
    elif explanation.ttft_s is None:
        story.append(f"its {_which(explanation)} token has not come")
    return story + [f"not used now is {url}: {why}" for url, why in explanation.not_used.items()]


def _came(explanation: Explanation, ttft_s: float) -> str:
    """What was measured, and beside it what was predicted of others."""
    came = f"{_which(explanation)} token after {_milliseconds(ttft_s)} ms"
    if explanation.cached_tokens is not None:
        came += f", {explanation.cached_tokens} tokens cached"
    regret_s = explanation.regret_s or 0.0
    if regret_s >= 5e-5:  # else it would read 0.0
        came += (
            f"; {_milliseconds(ttft_s - regret_s)} ms were predicted for the best choice with another computing worker"
        )
    return came


def _which(explanation: Explanation) -> str:
    return "next" if explanation.answered_tokens else "first"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{1e3 * seconds:.1f}" if seconds < 1e6 else "never"
