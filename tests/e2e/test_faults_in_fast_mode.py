"""Streams go on elsewhere also where no two batches round alike: not bit for bit, but as the model would go on.

Every token that a client got is judged by transformers, given the prompt and the tokens that this client got before it.
After a token that was lost, repeated or of another answer, the tokens that follow are improbable.
"""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from penstock.engine.sampler import uniform_numbers
from penstock.router.detokenizer import Vocabulary, decode
from penstock.router.openai.sampling import sample_seeds
from penstock.router.tokenizer import Tokenizer
from tests.e2e.client import Reply, chat, new_client
from tests.e2e.conftest import Deploy
from tests.e2e.deployment import Deployment, metrics_of
from tests.e2e.fast_engine import run_fast_engine
from tests.e2e.processes import send_signal
from tests.e2e.proxy import Proxy, Step, Trap, proxied

pytestmark = pytest.mark.slow

KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0, "frequency_penalty": 1.5, "presence_penalty": 0.5},
    {"temperature": 1.0, "n": 2},
)
NUM_STREAMS = 12
NUM_TOKENS = 100
KILLED_AFTER = 200
"""Frames of tokens from one worker, for half of the streams: each is about a third of the way."""
NEAR = 0.8
"""Nats between two roundings of a log-probability, which come to 0.28; 99 % of wrong tokens are 1.4 or more away."""
NEAR_P = 0.15
"""The same of a cumulative probability, where roundings come to 0.05."""


@dataclass(frozen=True)
class Ask:
    """One chat."""

    content: str
    options: dict[str, Any]

    @property
    def prompt(self) -> str:
        return f"<|im_start|>user\n{self.content}<|im_end|>\n<|im_start|>assistant\n"


ASKS = [
    Ask(
        f"{index}: {'The penstock carries water from the reservoir to the turbines. ' * (1 + index % 3)}",
        {"stream": True, "max_tokens": NUM_TOKENS, "seed": index, **KINDS[index % len(KINDS)]},
    )
    for index in range(NUM_STREAMS)
]


class Judge:
    """The same weights in float32 and one prompt at a time, by transformers."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float().eval()
        self._tokenizer = Tokenizer(folder)
        self._vocabulary = Vocabulary(self._tokenizer)
        num_tokens = self._model.config.vocab_size
        self._ids = {self._vocabulary.piece(token)[0]: token for token in range(num_tokens)}
        assert len(self._ids) == num_tokens, "tokens of equal bytes cannot be told apart"

    def assert_valid(self, ask: Ask, reply: Reply) -> None:
        """All answers are whole, and every token of them is one that the model gives after those before it."""
        prompt = self._tokenizer.encode(ask.prompt, add_special_tokens=False)
        assert reply.usage.prompt_tokens == len(prompt)
        assert sorted(reply.answers) == list(range(ask.options.get("n", 1)))
        seeds = sample_seeds(ask.options["seed"], len(reply.answers))
        for index, answer in reply.answers.items():
            ids = [self._ids[piece] for piece, _ in answer.tokens]
            assert (len(ids), answer.finish_reason) == (NUM_TOKENS, "length")
            assert answer.text == decode(self._vocabulary, ids)
            self._assert_valid(prompt, ids, [logprob for _, logprob in answer.tokens], seeds[index], ask.options)

    @torch.inference_mode()
    def _assert_valid(
        self, prompt: list[int], ids: list[int], logprobs: list[float], seed: int, options: dict[str, Any]
    ) -> None:
        logits = self._model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
        chosen = torch.tensor(ids)[:, None]
        found = logits.log_softmax(-1).gather(1, chosen).squeeze(1)
        assert (found - torch.tensor(logprobs)).abs().max() < NEAR
        ones = F.one_hot(chosen.squeeze(1), logits.shape[1])
        counts = ones.cumsum(0) - ones  # of every token, among those before
        logits -= options.get("frequency_penalty", 0) * counts + options.get("presence_penalty", 0) * (counts > 0)
        if options["temperature"] == 0:
            assert (logits.max(-1).values - logits.gather(1, chosen).squeeze(1)).max() < NEAR
            return
        shares = (logits / options["temperature"]).softmax(-1)
        ends = shares.cumsum(-1).gather(1, chosen).squeeze(1)
        begins = ends - shares.gather(1, chosen).squeeze(1)
        drawn = torch.from_numpy(uniform_numbers([seed] * len(ids), range(len(ids))))
        assert torch.maximum(begins - drawn, drawn - ends).max() < NEAR_P


@pytest.fixture(scope="module")
def cluster(deploy_for_module: Deploy) -> Iterator[tuple[Deployment, Proxy]]:
    """One prefill and two decode workers, and the proxy in front of the one that will die."""
    with proxied() as (_, proxies, reached_at):
        made = deploy_for_module(
            decode=2, engine={"dtype": "bfloat16"}, engine_main=run_fast_engine, reached_at=reached_at
        )
        yield made, proxies["decode-0"]


def run_all(url: str, salt: str) -> list[Reply]:
    with new_client(url) as client, ThreadPoolExecutor(NUM_STREAMS) as threads:

        def run(ask: Ask) -> Reply:
            return chat(client, [{"role": "user", "content": ask.content}], salt=salt, **ask.options)

        return list(threads.map(run, ASKS))


def texts(replies: list[Reply]) -> list[list[str]]:
    return [[answer.text for answer in reply.answers.values()] for reply in replies]


def test_streams_of_a_killed_worker_go_on_as_the_model_would(cluster: tuple[Deployment, Proxy], model: Path) -> None:
    deployment, proxy = cluster
    judge = Judge(model)
    dying = deployment.decode[0].process
    undisturbed = run_all(deployment.url, "undisturbed")
    proxy.trap = Trap(Step.TOKENS, KILLED_AFTER, lambda: send_signal(dying.engine, signal.SIGKILL))
    replies = run_all(deployment.url, "struck")
    assert metrics_of(deployment.url)["penstock_router_failed_placements_total"] >= 2, "hardly a stream felt it"
    assert texts(replies) != texts(undisturbed), "these engines are as good as exact: this test proves nothing"
    for ask, reply in zip(ASKS, replies, strict=True):
        judge.assert_valid(ask, reply)
    deployment.assert_quiet()
