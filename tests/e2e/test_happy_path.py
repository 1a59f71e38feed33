"""Prompts through the whole deployment with the stock SDK: the bits of one worker, over whichever wire KV moved."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.client import Reply, chat, completion, new_client, random_prompt
from tests.e2e.conftest import Deploy, need_wire
from tests.e2e.deployment import WIRES, Deployment

PROMPT = random_prompt(85, seed=1)
PROMPT_BLOCKS = 11
MESSAGES = [
    {"role": "system", "content": "The penstock carries water from the reservoir to the turbines."},
    {"role": "user", "content": "Where do blocks of the key-value cache flow? Grüße aus Köln!"},
]


@pytest.fixture(scope="module")
def one_worker(deploy_for_module: Deploy) -> openai.OpenAI:
    """A deployment without prefill workers: the reference."""
    return new_client(deploy_for_module(prefill=0).url)


@pytest.fixture(scope="module", params=WIRES)
def pair(request: pytest.FixtureRequest, deploy_for_module: Deploy) -> Deployment:
    need_wire(request.param)
    return deploy_for_module(wire=request.param)


@pytest.fixture
def client(pair: Deployment) -> Iterator[openai.OpenAI]:
    """Beside the SDK's client: whatever the test did, nothing is left afterwards."""
    with new_client(pair.url) as client:
        yield client
    pair.assert_quiet()


class Moved:
    """What the pair's counters rose by since this was made."""

    def __init__(self, pair: Deployment) -> None:
        [self._prefill], [self._decode] = pair.prefill, pair.decode
        self._before = self._read()

    def _read(self) -> tuple[float, float, float]:
        return (
            self._prefill.metric("penstock_prefill_tokens_total"),
            self._decode.metric("penstock_prefill_tokens_total"),
            self._decode.metric("penstock_pulled_blocks_total"),
        )

    def assert_is(self, *, prefilled: int, blocks: int) -> None:
        """P computed so many prompt tokens, D none, and so many blocks moved."""
        after = self._read()
        assert tuple(b - a for a, b in zip(self._before, after, strict=True)) == (prefilled, 0, blocks)


def assert_same(found: Reply, expected: Reply) -> None:
    """Token for token, and log-probability for log-probability, bit by bit."""
    assert found.answers == expected.answers
    for answer in expected.answers.values():
        answer.assert_varied()


def assert_both_worked(reply: Reply, pair: Deployment) -> None:
    assert (reply.prefill, reply.decode) == (pair.prefill[0].url, pair.decode[0].url)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_completions_equal_one_worker(
    pair: Deployment, client: openai.OpenAI, one_worker: openai.OpenAI, stream: bool
) -> None:
    salt = f"completions {stream}"
    moved = Moved(pair)
    reply = completion(client, PROMPT, stream=stream, salt=salt)
    assert_same(reply, completion(one_worker, PROMPT, stream=stream, salt=salt))
    assert_both_worked(reply, pair)
    moved.assert_is(prefilled=85, blocks=PROMPT_BLOCKS)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (85, 24)
    assert reply.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_chats_equal_one_worker(
    pair: Deployment, client: openai.OpenAI, one_worker: openai.OpenAI, stream: bool
) -> None:
    salt = f"chats {stream}"
    moved = Moved(pair)
    reply = chat(client, MESSAGES, stream=stream, salt=salt)
    assert_same(reply, chat(one_worker, MESSAGES, stream=stream, salt=salt))
    assert_both_worked(reply, pair)
    prompt = reply.usage.prompt_tokens
    moved.assert_is(prefilled=prompt, blocks=-(-prompt // 8))


def test_three_samples_at_temperature_one_equal_one_worker(
    pair: Deployment, client: openai.OpenAI, one_worker: openai.OpenAI
) -> None:
    options: dict[str, Any] = {"n": 3, "temperature": 1, "seed": 42, "stream": True, "salt": "samples"}
    moved = Moved(pair)
    reply = completion(client, PROMPT, **options)
    assert_same(reply, completion(one_worker, PROMPT, **options))
    assert len({answer.text for answer in reply.answers.values()}) == 3
    moved.assert_is(prefilled=85, blocks=PROMPT_BLOCKS)
    assert completion(client, PROMPT, **options | {"seed": 43}).answers != reply.answers


def test_follow_up_turns_move_only_what_is_new(
    pair: Deployment, client: openai.OpenAI, one_worker: openai.OpenAI
) -> None:
    """The second turn is the first, its answer, and more: both workers have its beginning."""
    first = completion(client, PROMPT, salt="turns")
    turn = PROMPT + random_prompt(60, seed=2)
    moved = Moved(pair)
    second = completion(client, turn, salt="turns")
    assert_same(second, completion(one_worker, turn, salt="turns"))
    assert_both_worked(second, pair)
    assert second.usage.prompt_tokens_details.cached_tokens == 80
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    moved.assert_is(prefilled=65, blocks=9)


def test_a_prompt_that_is_cached_on_decode_is_not_handed_over(client: openai.OpenAI) -> None:
    first = completion(client, PROMPT, salt="again")
    again = completion(client, PROMPT, salt="again")
    assert again.answers == first.answers
    assert again.prefill is None
    assert again.usage.prompt_tokens_details.cached_tokens == 80


def test_salts_share_no_blocks(pair: Deployment, client: openai.OpenAI) -> None:
    first = completion(client, PROMPT, salt="tenant 1")
    moved = Moved(pair)
    second = completion(client, PROMPT, salt="tenant 2")
    assert second.answers == first.answers
    assert second.usage.prompt_tokens_details.cached_tokens == 0
    moved.assert_is(prefilled=85, blocks=PROMPT_BLOCKS)
