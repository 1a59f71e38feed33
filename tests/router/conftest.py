"""What the router's tests share: one served model, workers that play it, a router in front, and the stock client."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import openai
import pytest
from tokenizers import Tokenizer

from penstock.router.config import RouterConfig
from tests.router.fake_worker import FakeWorker
from tests.router.model_folders import byte_level_bpe, write_folder
from tests.router.serving import LoopThread, RunningRouter, running_router

TEXTS = (
    "The penstock carries water: Grüße, 你好 and 👩‍🚀 from the reservoir.",
    "Blocks flow from the prefill pool.",
    "naïve café",
)
"""What the fake workers answer as samples 0, 1 and 2."""

StartRouter: TypeAlias = Callable[..., RunningRouter]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_level_bpe()


@pytest.fixture(scope="session")
def model_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny", tokenizer, eos="<|im_end|>")


@pytest.fixture(scope="session")
def outputs(tokenizer: Tokenizer) -> list[list[int]]:
    """`TEXTS` as token ids with the end-of-sequence token."""
    end = tokenizer.token_to_id("<|im_end|>")
    return [[*tokenizer.encode(text).ids, end] for text in TEXTS]


@pytest.fixture(scope="session")
def worker_loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


@pytest.fixture
def start_worker(worker_loop: LoopThread, outputs: list[list[int]]) -> Iterator[Callable[[], FakeWorker]]:
    with ExitStack() as stack:

        def start() -> FakeWorker:
            worker = FakeWorker(outputs)
            worker_loop.run(worker.start())
            stack.callback(lambda: worker_loop.run(worker.stop()))
            return worker

        yield start


@pytest.fixture
def worker(start_worker: Callable[[], FakeWorker]) -> FakeWorker:
    """One decode worker."""
    return start_worker()


@pytest.fixture
def second_worker(start_worker: Callable[[], FakeWorker]) -> FakeWorker:
    """Another decode worker."""
    return start_worker()


@pytest.fixture
def start_router(model_folder: Path, start_worker: object) -> Iterator[StartRouter]:  # noqa: ARG001
    """Starts a router for the workers given by role, and waits until it found them ready. Stops before they do."""
    with ExitStack() as stack:

        def start(
            decode: tuple[FakeWorker, ...], prefill: tuple[FakeWorker, ...] = (), **settings: Any
        ) -> RunningRouter:
            config = RouterConfig(
                model=str(model_folder),
                port=0,
                decode=",".join(worker.url for worker in decode),
                prefill=",".join(worker.url for worker in prefill),
                **settings,
            )
            router = stack.enter_context(running_router(config))
            router.wait_ready()
            return router

        yield start


@pytest.fixture
def router(start_router: StartRouter, worker: FakeWorker) -> RunningRouter:
    """A router in front of `worker`."""
    return start_router((worker,))


@pytest.fixture
def connect() -> Iterator[Callable[[RunningRouter], openai.OpenAI]]:
    """The stock SDK, pointed at a router, without its retries."""
    with ExitStack() as stack:
        yield lambda router: stack.enter_context(
            openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0, timeout=30)
        )


@pytest.fixture
def client(router: RunningRouter, connect: Callable[[RunningRouter], openai.OpenAI]) -> openai.OpenAI:
    return connect(router)
