"""What all requests of one router share, put together once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from starlette.types import Scope

from penstock.errors import ConfigError, WorkerLost, reason_of
from penstock.hop import new_session
from penstock.protocol import SILENT_S
from penstock.router.beside import Beside
from penstock.router.cluster import Cluster, Member
from penstock.router.config import RouterConfig
from penstock.router.discovery import api_of_this_pod, discover
from penstock.router.flow.admission import Bounds
from penstock.router.flow.keys import KeyFile
from penstock.router.flow.memory import Memory
from penstock.router.flow.quota import Quotas
from penstock.router.flow.room import Room
from penstock.router.flow.tenants import Tenant
from penstock.router.http import Lifelines, header
from penstock.router.index.follower import Follower
from penstock.router.index.prefix_index import PrefixIndex
from penstock.router.metrics import Metrics
from penstock.router.model import load_model
from penstock.router.placement.guarded import Guarded
from penstock.router.placement.journal import Journal
from penstock.router.placement.least_work import LeastWork
from penstock.router.placer import Placer
from penstock.router.policy import Policy
from penstock.router.shared.replicas import open_replicas
from penstock.router.tokenizing import Tokenizing
from penstock.silence import HeardWithin
from penstock.telemetry.trace import open_tracer


class Services:
    """Model, cluster, placement, metrics and the requests in progress. Use `running` around its life."""

    cluster: Cluster
    placer: Placer
    journal: Journal

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
        self.keys = KeyFile(config.keys, self.metrics.key_file_errors.inc)
        self._replicas = open_replicas(config, self.metrics)
        self.quotas = Quotas(self._replicas.buckets)
        most = config.max_bodies_bytes
        self.bodies = Memory(most, f"request bodies of {most} bytes are being read already")
        self.tracer = open_tracer(config, "penstock-router")
        self.lifelines = Lifelines()
        self.draining = False
        self.tokenizing = Tokenizing(self.model, config, lambda: self.context_tokens)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connects to the workers for as long as the block lasts."""
        async with new_session() as session:
            index = PrefixIndex(self.config.index_blocks)
            self.metrics.index_blocks.set_function(lambda: len(index))
            follower = Follower(session, index, self.metrics, lambda url, events: self.cluster.observed(url, events))
            self.cluster = Cluster(
                session,
                self.config.poll_s,
                follower.follow,
                model=self.model.fingerprint,
                endpoint_port=self.config.endpoint_port,
            )
            self.journal = Journal(self.cluster.books.model, follower.judge)
            self.placer = Placer(
                session,
                self.cluster,
                self._policy(),
                index,
                self.metrics,
                self.journal,
                max_attempts=self.config.max_attempts,
                wait_s=self.config.worker_wait_s,
                stream_wait_s=self.config.stream_wait_s,
                room=Room(self.config.worker_ahead_s),
                bounds=Bounds(self.config.max_queued, self.config.max_queued_tokens, self.config.max_wait_s),
            )
            gate, metrics = self.placer.gate, self.metrics
            metrics.queued_requests.set_function(lambda: len(gate))
            metrics.queued_tokens.set_function(lambda: gate.work)
            for url in self.config.decode_urls:
                self.cluster.add(Member(url, "decode"))
            for url in self.config.prefill_urls:
                self.cluster.add(Member(url, "prefill"))
            tasks = [
                asyncio.create_task(self._discover(), name="discovery"),
                asyncio.create_task(self.keys.watch(), name="keys"),
                asyncio.create_task(self._replicas.share(self.cluster.books), name="replicas"),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._replicas.close()
                await self.cluster.close()
                await follower.close()
                self.tokenizing.close()
                await asyncio.to_thread(self.tracer.close)

    def _policy(self) -> Policy:
        policy: Policy = Guarded(self.journal, self.config.min_prefill_tokens)
        if self.config.policy == "least-work":
            policy = LeastWork(self.config.min_prefill_tokens)
        return Beside(self.config.beside, policy) if self.config.beside else policy

    async def _discover(self) -> None:
        if self._api is not None:
            count_error = self.metrics.discovery_errors.inc
            await discover(self._api, self.config.discover, self.cluster.set_members, count_error)

    def tenant(self, scope: Scope) -> Tenant:
        """Whose request it is, by its API key. Raises RequestError (401)."""
        return self.keys.tenant(header(scope, b"authorization"), header(scope, b"x-api-key"))

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here."""
        beside = self.config.beside
        return not self.draining and (self.cluster.is_ready(beside) if beside else self.cluster.has_ready("decode"))

    async def metrics_beside(self) -> bytes:
        """The metrics of the worker that this router stands beside. Raises WorkerLost."""
        url = f"{self.config.beside}/metrics"
        try:
            async with HeardWithin(SILENT_S), self.placer.session.get(url) as response:
                if response.status == 200:
                    return await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise WorkerLost(f"{url} does not answer: {reason_of(error)}") from error
        raise WorkerLost(f"{url} answers HTTP {response.status}")

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
