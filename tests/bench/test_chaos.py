"""The verdict on a stream: nothing that a client must not see may pass for right."""

import openai
import pytest

from tests.e2e.chaos import is_cut, verdict
from tests.e2e.client import Answer, Reply

TOKENS = [("a", -0.1), ("b", -0.2), ("c", -0.3)]
EXPECTED = {0: Answer("abc", TOKENS, "length"), 1: Answer("ab", TOKENS[:2], "stop")}
SECOND = EXPECTED[1]


@pytest.mark.parametrize(
    ("first", "error", "found"),
    [
        (Answer("abc", TOKENS, "length"), None, "right"),
        (Answer("abd", [*TOKENS[:2], ("d", -0.3)], "length"), None, "wrong"),
        (Answer("abc", [*TOKENS[:2], ("c", -0.4)], "length"), None, "wrong"),
        (Answer("abc", TOKENS, "stop"), None, "wrong"),
        (Answer("ab", TOKENS[:2], None), None, "wrong"),
        (Answer("abcc", [*TOKENS, TOKENS[2]], "length"), None, "duplicated"),
        (Answer("ab", TOKENS[:2], None), RuntimeError("503"), "error"),
        (Answer("ac", [TOKENS[0], TOKENS[2]], None), RuntimeError("503"), "wrong"),
        (Answer("ab", TOKENS[:2], None), TimeoutError(), "hang"),
    ],
)
def test_every_flaw_is_found(first: Answer, error: Exception | None, found: str) -> None:
    assert verdict(Reply({0: first, 1: SECOND}, error=error), EXPECTED) == found


def test_an_answer_that_is_missing_is_wrong() -> None:
    assert verdict(Reply({0: EXPECTED[0]}), EXPECTED) == "wrong"


def test_an_error_that_the_server_tells_is_no_cut() -> None:
    request = openai.OpenAI(api_key="none")._client.build_request("POST", "http://there")
    assert not is_cut(Reply())
    assert not is_cut(Reply(error=openai.APIError("an event of the stream", request, body=None)))
    assert not is_cut(Reply(error=openai.APITimeoutError(request)))
    assert is_cut(Reply(error=openai.APIConnectionError(request=request)))
    assert is_cut(Reply(error=ConnectionResetError()))
