"""Errors come in the form of the API that the request speaks."""

import hashlib
import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import (
    DeadlineExceeded,
    Overloaded,
    PrefillLost,
    RateLimited,
    RequestError,
    WorkerLost,
)
from penstock.router.anthropic.errors import error_body
from tests.router.conftest import StartRouter
from tests.router.fake_worker import FakeWorker
from tests.router.serving import RunningRouter

SDK = {"anthropic-version": "2023-06-01", "x-api-key": "sk-wrong"}
"""What Anthropic's SDK says on every path."""
CHAT = "/v1/chat/completions"


def ask(
    router: RunningRouter, method: str, path: str, headers: dict[str, str], body: Any = None
) -> tuple[int, http.client.HTTPMessage, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=10)
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    with connection.getresponse() as response:
        answer = response.status, response.headers, json.loads(response.read())
    connection.close()
    return answer


@pytest.mark.parametrize("headers", [SDK, {}], ids=["by the SDK", "by the path alone"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages?beta=true"])
def test_the_endpoint_that_is_missing_says_so_in_anthropic_s_form(
    router: RunningRouter, path: str, headers: dict[str, str]
) -> None:
    status, told, body = ask(router, "POST", path, headers, {"model": "tiny", "max_tokens": 5, "messages": []})
    message = f"there is no {path.partition('?')[0]} here"
    assert body == {
        "type": "error",
        "error": {"type": "not_found_error", "message": message},
        "request_id": told["request-id"],
    }
    assert (status, told["x-should-retry"]) == (404, "false")
    assert told["request-id"]


@pytest.mark.parametrize("path", ["/v1/messagesx", "/v1/embeddings"])
def test_all_else_is_told_in_openai_s_form(router: RunningRouter, path: str) -> None:
    status, told, body = ask(router, "POST", path, {"x-request-id": "mine"}, {})
    error = {"message": f"there is no {path} here", "type": "invalid_request_error", "param": None, "code": "not_found"}
    assert (status, body, told["x-request-id"]) == (404, {"error": error}, "mine")


def test_every_refusal_of_anthropic_s_sdk_is_in_its_form(
    start_router: StartRouter, worker: FakeWorker, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[team]\nkey_sha256 = ["{hashlib.sha256(b"sk").hexdigest()}"]\nrequests_per_minute = 1\n')
    router = start_router((worker,), keys=str(keys), max_body_bytes=1000, max_header_bytes=4096)
    known = SDK | {"x-api-key": "sk"}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
    asked = [
        (401, "authentication_error", "GET", "/v1/models", SDK, None),
        (401, "authentication_error", "POST", CHAT, SDK, body),
        (404, "not_found_error", "GET", "/v1/models/other", known, None),
        (405, "invalid_request_error", "DELETE", "/v1/models", known, None),
        (431, "invalid_request_error", "POST", CHAT, known | {"x-large": "a" * 5000}, body),
        (413, "request_too_large", "POST", CHAT, known, body | {"user": "x" * 1000}),
        (200, None, "POST", CHAT, known, body),
        (429, "rate_limit_error", "POST", CHAT, known, body),
    ]
    for status, kind, *call in asked:
        found, told, answer = ask(router, *call)  # type: ignore[arg-type]
        assert (found, answer["error"]["type"] if kind else None) == (status, kind), answer
        assert told["request-id"] == told["x-request-id"] or status == 431, "nobody has read its headers"
        assert kind is None or answer["type"] == "error"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RequestError("wrong"), "invalid_request_error", "wrong"),
        (RequestError("not yours", status=403), "permission_error", "not yours"),
        (RequestError("more than a minute's quota", status=429), "invalid_request_error", "more than a minute's quota"),
        (RateLimited("later", retry_after_s=200.0), "rate_limit_error", "later; try again in 200 s"),
        (Overloaded("full", retry_after_s=0.25), "overloaded_error", "full; try again in 0.25 s"),
        (DeadlineExceeded("too late"), "timeout_error", "too late; try again in 1 s"),
        (WorkerLost("gone"), "api_error", "gone; try again in 1 s"),
        (PrefillLost("gone"), "api_error", "gone; try again in 1 s"),
        (KeyError("secret"), "api_error", "the server failed; the reason is in its log"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_have_anthropic_s_types(error: Exception, kind: str, message: str) -> None:
    expected = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "r"}
    assert json.loads(error_body(error, "r")) == expected
