"""Stop strings: found wherever the text is cut, and nothing that might begin one is let out."""

from hypothesis import example, given
from hypothesis import strategies as st

from penstock.router.stop import StopStrings

TEXT = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=3)


def expected(text: str, stops: list[str], after: int = 0) -> tuple[str, bool]:
    """By definition: at the first character with which any stop string is complete, cut before the longest of them."""
    for end in range(after + 1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - len(max(complete, key=len))], True
    return text, False


@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 30)))
@example(text="aabaabaac", stops=["aabaac"], cuts=[3, 5])
@example(text="abcab", stops=["b", "abc"], cuts=[])
def test_the_result_does_not_depend_on_the_cuts(text: str, stops: list[str], cuts: list[int]) -> None:
    scanner = StopStrings(stops)
    out, start = "", 0
    for end in [*sorted(min(cut, len(text)) for cut in cuts), len(text)]:
        out += scanner.push(text[start:end])
        start = end
        if scanner.stopped:
            break
        held = text[len(out) : end]
        assert any(stop.startswith(held) for stop in stops) or not held, "only what may begin a stop string is held"
        assert not any(
            stop.startswith(text[begin:end]) for stop in stops for begin in range(len(out)) if len(stop) > end - begin
        ), "what was let out cannot begin one"
    if not scanner.stopped:
        out += scanner.finish()
    assert (out, scanner.stopped) == expected(text, stops)


def test_a_long_near_miss_costs_one_step_per_character() -> None:
    scanner = StopStrings(["a" * 1000 + "b"])
    text = "".join(scanner.push("a") for _ in range(50_000)) + scanner.finish()
    assert text == "a" * 50_000


@given(text=TEXT, stops=STOPS, after=st.integers(0, 30))
@example(text="aaa", stops=["aa"], after=2)
@example(text="abab", stops=["ab", "ba"], after=2)
def test_one_that_ends_too_early_does_not_count(text: str, stops: list[str], after: int) -> None:
    scanner = StopStrings(stops)
    out = scanner.push(text[:after], may_stop=False)
    assert not scanner.stopped
    out += scanner.push(text[after:])
    if not scanner.stopped:
        out += scanner.finish()
    assert (out, scanner.stopped) == expected(text, stops, after)
