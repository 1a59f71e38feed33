"""The engine process's loop, one round at a time, without its threads."""

import json
import math
import shutil
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from penstock.engine import build
from penstock.engine.config import EngineConfig
from penstock.engine.kv.layout import KVLayout
from penstock.engine.messages import StepOutputs, decode_from_engine
from penstock.engine.model import load_config, weight_bytes
from penstock.engine.process import EngineProcess, StepClock
from penstock.errors import ConfigError, MemoryPlanError, ModelError, WorkerLost
from penstock.protocol import StepTiming
from tests.engine.harness import prompt, request
from tests.engine.model.tiny import CASES, rewrite, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save(CASES["qwen3-tied"], path)
    Tokenizer(BPE()).save(str(path / "tokenizer.json"))
    return path


@pytest.fixture
def process(folder: Path) -> Iterator[EngineProcess]:
    front, back = Pipe()
    made = EngineProcess(EngineConfig(model=str(folder), num_blocks=16, block_size=8, transport="tcp", threads=1), back)
    made.front = front  # type: ignore[attr-defined]
    yield made
    made._puller.close()


def test_cache_events_do_not_pile_up_while_nobody_subscribes(process: EngineProcess) -> None:
    process._engine.add(request("a", prompt(40)))
    while process._engine.step():
        process._flush()
    assert process._engine.pool.snapshot()
    assert process._engine.pool.drain_events() == ((), ())


def test_a_round_is_one_message(process: EngineProcess) -> None:
    process._engine.add(request("a", prompt(20), max_tokens=1))
    process._engine.step()
    process._flush()
    message = decode_from_engine(process.front.recv_bytes())  # type: ignore[attr-defined]
    assert isinstance(message, StepOutputs)
    assert [type(output.frame).__name__ for output in message.outputs] == ["Tokens", "Finished", "Done"]
    assert not process.front.poll()  # type: ignore[attr-defined]


def test_the_memory_plan_counts_the_packed_copy_of_a_tied_head(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_config(folder)
    kv = KVLayout(model.num_layers, model.num_kv_heads, model.head_dim, 8, model.dtype)
    without_copy = weight_bytes(model) + 16 * kv.block_bytes
    monkeypatch.setattr(build, "_free_bytes", lambda _: without_copy)
    config = EngineConfig(model=str(folder), num_blocks=16, block_size=8, device="cpu", threads=1)
    with pytest.raises(MemoryPlanError, match="weights"):
        build.build_engine(config, "g")


def test_the_memory_plan_counts_rotary_tables_of_what_is_served(folder: Path, tmp_path: Path) -> None:
    path = shutil.copytree(folder, tmp_path / "model")
    shape = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 2**40}))
    config = EngineConfig(model=str(path), num_blocks=16, block_size=8, device="cpu", threads=1)
    assert build.build_engine(config, "g").limits.max_context_tokens == 128


def test_weights_that_make_no_numbers_are_refused_at_start(folder: Path, tmp_path: Path) -> None:
    path = shutil.copytree(folder, tmp_path / "model")
    rewrite(path, lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"].fill_(math.nan))
    config = EngineConfig(model=str(path), num_blocks=16, block_size=8, device="cpu", threads=1)
    with pytest.raises(ModelError, match="logits are not finite"):
        build.build_engine(config, "g")


def test_the_smallest_cache_is_enough_to_start(folder: Path) -> None:
    config = EngineConfig(model=str(folder), num_blocks=2, block_size=1, device="cpu", threads=1)
    assert "exact mode" in " ".join(build.build_engine(config, "g").notes)


def test_too_much_quarantine_ends_the_process(process: EngineProcess) -> None:
    process._puller.counters.quarantined_blocks = 4
    process._check_quarantine()
    process._puller.counters.quarantined_blocks = 5
    with pytest.raises(WorkerLost, match="5 of 16"):
        process._check_quarantine()


def test_workers_of_another_secret_have_another_layout(process: EngineProcess, folder: Path) -> None:
    other = EngineConfig(model=str(folder), num_blocks=16, block_size=8, transport="tcp", threads=1, secret="other")
    stranger = EngineProcess(other, Pipe()[1])
    stranger._puller.close()
    assert stranger._peer.layout != process._peer.layout


def test_a_long_prompt_is_not_predicted_to_be_short() -> None:
    clock = StepClock(first_guess_s_per_row=0.01)
    clock.begin(1)
    clock.end(StepTiming(0, 1, 100, 0.02))
    clock.begin(512)
    assert clock.beat().predicted_s >= 5.12
    clock.end(StepTiming(512, 0, 512, 1.0))
    clock.begin(512)
    assert 1.0 <= clock.beat().predicted_s < 2.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_size": 0},
        {"max_step_tokens": 0},
        {"max_sequences": 0},
        {"num_blocks": -1},
        {"max_context_tokens": 1},
        {"lease_s": 0.0},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        EngineConfig(**wrong)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_with_the_arithmetic(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights .* MiB \+ KV cache .* MiB .* are free"):
        EngineProcess(EngineConfig(model=str(folder), kv_bytes=2**50, transport="tcp"), Pipe()[0])
    with pytest.raises(ConfigError, match="holds 0 blocks"):
        EngineProcess(EngineConfig(model=str(folder), kv_bytes=1000, transport="tcp"), Pipe()[0])
