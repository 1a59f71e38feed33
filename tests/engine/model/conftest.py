"""Checkpoints on disk, sound until a test breaks them."""

from pathlib import Path

import pytest

from tests.engine.model.tiny import CASES, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint in one file."""
    save(CASES["qwen3"], tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A sound checkpoint in several shards."""
    save(CASES["qwen3"], tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    return tmp_path
