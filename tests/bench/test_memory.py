"""The fill of bench.memory uses the whole KV cache, in one batch of the engine."""

import pytest

from bench.memory import BLOCK_BYTES, KV_BYTES, plan_fill
from bench.models import SHAPES, Shape
from penstock.engine.config import EngineConfig


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_the_fill_takes_all_blocks_and_the_room_for_copies_but_less_than_a_row(shape: Shape) -> None:
    fill = plan_fill(shape)
    copies = fill.in_flight * fill.row * shape.kv_bytes_per_token()
    room = KV_BYTES - BLOCK_BYTES
    assert room - fill.row * shape.kv_bytes_per_token() < copies <= room
    assert fill.waves * fill.in_flight * fill.prompt_tokens * shape.kv_bytes_per_token() > BLOCK_BYTES
    assert fill.in_flight <= EngineConfig.max_sequences
    assert fill.row * 3 // 4 < fill.prompt_tokens < fill.prompt_tokens + fill.output_tokens <= fill.row
    assert fill.row <= shape.context
