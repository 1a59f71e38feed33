"""What all requests of one router share, put together once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from penstock.errors import ConfigError, RequestError
from penstock.hop import new_session
from penstock.router.cluster import Cluster
from penstock.router.config import RouterConfig
from penstock.router.discovery import api_of_this_pod, discover
from penstock.router.http import Lifelines
from penstock.router.metrics import Metrics
from penstock.router.model import load_model
from penstock.router.placer import Placer
from penstock.router.policy import LeastWork
from penstock.router.prefix_index import PrefixIndex

T = TypeVar("T")

_MOST_CHARS_PER_TOKEN = 128
"""Vocabularies have no longer tokens than this, and those only for runs of spaces and dashes."""


class Services:
    """Model, cluster, placement, metrics and the requests in progress. Use `running` around its life."""

    cluster: Cluster
    placer: Placer

    def __init__(self, config: RouterConfig) -> None:
        """Reads the model's folder. Raises ConfigError."""
        if not config.model:
            raise ConfigError("the router needs a model folder for its tokenizer and chat template: set model")
        self.config = config
        self.model = load_model(
            Path(config.model), name=config.served_model_name, context_tokens=config.max_context_tokens
        )
        self._api = api_of_this_pod() if config.discover else None
        self.metrics = Metrics()
        self.lifelines = Lifelines()
        self.draining = False
        self._encoders = ThreadPoolExecutor(max_workers=2, thread_name_prefix="encode")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connects to the workers for as long as the block lasts."""
        async with new_session() as session:
            self.cluster = Cluster(session, self.config.poll_s)
            self.placer = Placer(
                session,
                self.cluster,
                LeastWork(self.config.min_prefill_tokens),
                PrefixIndex(self.config.index_blocks),
                self.metrics,
                max_attempts=self.config.max_attempts,
                wait_s=self.config.worker_wait_s,
            )
            for url in self.config.decode_urls:
                self.cluster.add(url, "decode")
            for url in self.config.prefill_urls:
                self.cluster.add(url, "prefill")
            discovery = asyncio.create_task(self._discover(), name="discovery")
            try:
                yield
            finally:
                discovery.cancel()
                await asyncio.gather(discovery, return_exceptions=True)
                await self.cluster.close()
                self._encoders.shutdown(wait=False, cancel_futures=True)

    async def _discover(self) -> None:
        if self._api is not None:
            count_error = self.metrics.discovery_errors.inc
            await discover(self._api, self.config.discover, self.cluster.set_members, count_error)

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here."""
        return not self.draining and self.cluster.has_ready("decode")

    @property
    def context_tokens(self) -> int:
        """Longest prompt plus answer: the model's own limit, or less when a worker's memory holds less."""
        served = self.cluster.smallest(lambda worker: worker.max_context_tokens)
        return self.model.context_tokens if served is None else min(served, self.model.context_tokens)

    @property
    def samples_per_prompt(self) -> int:
        """Most answers to one prompt: they all run on one worker, in one batch."""
        served = self.cluster.smallest(lambda worker: worker.max_samples)
        return self.config.max_samples if served is None else min(served, self.config.max_samples)

    async def encode(self, text: str, *, add_special_tokens: bool, field: str) -> list[int]:
        """Token ids of `text`.

        Raises RequestError naming `field` for a text that cannot fit into the context, without tokenizing it: 5 MB take
        ten seconds (measured, one core).
        """
        if len(text) > _MOST_CHARS_PER_TOKEN * self.context_tokens:
            raise RequestError(
                f"the prompt has {len(text)} characters, which is more than the context holds, "
                f"{self.context_tokens} tokens",
                field=field,
                code="context_length_exceeded",
            )
        return await self.aside(
            len(text), lambda: self.model.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        )

    async def aside(self, size: int, work: Callable[[], T]) -> T:
        """The result of `work` on so many characters or bytes, in a thread when they are many: until it is done no
        stream would go on, and every worker would seem silent."""
        if size <= self.config.encode_inline_chars:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._encoders, work)
