"""Norm, rotary embedding and activation on CPU: right by the formula, and a row is the same in every batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from penstock.kernels.rms_norm import double_weight, rms_norm
from penstock.kernels.rope import rope_and_write
from penstock.kernels.rows import num_threads
from penstock.kernels.swiglu import swiglu
from tests.kernels.paged import make_batch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("dim", [16, 100, 576])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_follows_the_formula(dtype: torch.dtype, dim: int, rows: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, dim).to(dtype), torch.randn(dim).to(dtype)
    found = rms_norm(x, weight, 1e-5)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert torch.equal(rms_norm(x, double_weight(weight), 1e-5), found)


@pytest.mark.parametrize("shape", [(1, 32), (3, 200), (2, 17, 96)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_follows_the_formula(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(shape).to(dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    torch.testing.assert_close(
        swiglu(gate_up).double(), gate * gate.sigmoid() * up, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


def cos_sin_table(positions: int, rotary_dim: int) -> Tensor:
    angles = torch.arange(positions)[:, None] / 10000 ** (torch.arange(0, rotary_dim, 2) / rotary_dim)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


@pytest.mark.parametrize("rotary_dim", [16, 8])
@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_turns_pairs_by_their_angle_and_writes_only_its_slots(
    dtype: torch.dtype, block_size: int, rotary_dim: int
) -> None:
    torch.manual_seed(0)
    batch = make_batch([20, 5], [20, 1], block_size)
    q, k, v = (torch.randn(21, heads, 16).to(dtype) for heads in (9, 3, 3))
    pool = torch.full((int(batch.block_tables.max()) + 1, 3, 2, 2, block_size, 16), torch.nan, dtype=dtype)
    turned = rope_and_write(torch.cat((q, k, v), dim=1), cos_sin_table(32, rotary_dim), batch, pool[:, :, 1])

    def turn(x: Tensor) -> Tensor:
        half = rotary_dim // 2
        pairs = torch.complex(x[..., :half].double(), x[..., half:rotary_dim].double())
        angles = batch.positions[:, None, None] / 10000 ** (torch.arange(0, rotary_dim, 2) / rotary_dim)
        pairs = pairs * torch.polar(torch.ones_like(angles), angles).to(torch.complex128)
        return torch.cat((pairs.real, pairs.imag, x[..., rotary_dim:].double()), dim=-1)

    torch.testing.assert_close(turned.double(), turn(q), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    blocks, offsets = batch.slots // block_size, batch.slots % block_size
    written = pool[blocks, :, 1, :, offsets]
    torch.testing.assert_close(written[:, :, 0].double(), turn(k), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert torch.equal(written[:, :, 1], v)
    pool[blocks, :, 1, :, offsets] = torch.nan
    assert pool.isnan().all()


@pytest.mark.parametrize("width", [202, 576])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "operation", [swiglu, lambda x: rms_norm(x, x[0].abs() * 0 + 0.7, 1e-5)], ids=["swiglu", "rms_norm"]
)
def test_a_row_is_bitwise_the_same_wherever_threads_cut_the_batch(
    operation: Callable[[Tensor], Tensor], dtype: torch.dtype, width: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(1001, width).to(dtype)
    with num_threads(1):
        one_by_one = torch.cat([operation(row) for row in x.split(1)])
    for threads in (1, 2, 3):
        with num_threads(threads):
            for rows in (2, 3, 17, 327, 1000, 1001):
                assert torch.equal(operation(x[-rows:]), one_by_one[-rows:]), f"{rows} rows, {threads} threads"


def test_rope_of_a_row_is_bitwise_the_same_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    table = cos_sin_table(600, 64)
    whole = make_batch([555], [555], 16)
    qkv = torch.randn(555, 9 + 3 + 3, 64).bfloat16()
    pool = torch.zeros(int(whole.block_tables.max()) + 1, 3, 2, 16, 64, dtype=torch.bfloat16)
    together = rope_and_write(qkv.clone(), table, whole, pool)
    for row in (0, 1, 17, 554):
        alone = make_batch([row + 1], [1], 16)
        other = torch.zeros(int(alone.block_tables.max()) + 1, 3, 2, 16, 64, dtype=torch.bfloat16)
        one = slice(row, row + 1)
        assert torch.equal(rope_and_write(qkv[one].clone(), table, alone, other)[0], together[row])
        block, offset = divmod(int(whole.slots[row]), 16)
        block_alone, offset_alone = divmod(int(alone.slots[0]), 16)
        assert torch.equal(other[block_alone, :, :, offset_alone], pool[block, :, :, offset])
