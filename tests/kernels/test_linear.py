"""The matrix product: right, and a row is bitwise the same in every batch, packed or plain."""

import pytest
import torch
import torch.nn.functional as F

from penstock.kernels.linear import gated_linear, linear, pack_gated_weight, pack_weight, row_sizes
from penstock.kernels.rows import agreeing_sizes, cancelling, num_threads, split_rows

SHAPES = [(576, 576), (576, 1536), (192, 64), (100, 48)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_product_and_bias_are_right(dtype: torch.dtype, shape: tuple[int, int], packed: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 7, shape[1]).to(dtype), torch.randn(shape).to(dtype)
    bias = torch.randn(shape[0]).to(dtype)
    out = linear(x, pack_weight(weight) if packed else weight, bias)
    expected = F.linear(x.double(), weight.double(), bias.double())
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol={torch.float32: 1e-3}.get(dtype, 0.3))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_and_gate_are_right(dtype: torch.dtype, packed: bool) -> None:
    torch.manual_seed(0)
    x, gate_up, bias = (torch.randn(shape).to(dtype) for shape in ((7, 64), (192, 64), (192,)))
    residual = torch.randn(7, 192).to(dtype)
    pack, pack_gated = (pack_weight, pack_gated_weight) if packed else (lambda weight: weight,) * 2
    tolerance = {"rtol": 1e-2, "atol": {torch.float32: 1e-3}.get(dtype, 0.3)}
    product = F.linear(x.double(), gate_up.double(), bias.double())
    total = linear(x, pack(gate_up), bias, residual)
    torch.testing.assert_close(total.double(), product + residual.double(), **tolerance)
    gate, up = product.chunk(2, dim=-1)
    found = gated_linear(x, pack_gated(gate_up), bias)
    torch.testing.assert_close(found.double(), F.silu(gate) * up, rtol=2e-2, atol=tolerance["atol"])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_bitwise_the_same_among_1_to_140_rows_and_1_or_2_threads(
    dtype: torch.dtype, shape: tuple[int, int], packed: bool
) -> None:
    x, weight = (operand.to(dtype) for operand in cancelling(140, shape[1], shape[0]))
    weight = pack_weight(weight) if packed else weight
    with num_threads(1):
        one_by_one = torch.cat([linear(row, weight) for row in x.split(1)])
    for threads in (1, 2):
        with num_threads(threads):
            for rows in (1, 2, 3, 5, 16, 17, 31, 33, 63, 64, 65, 100, 129, 140):
                assert torch.equal(linear(x[-rows:], weight), one_by_one[-rows:]), f"{rows} rows, {threads} threads"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(576, 576), (576, 1536), (200, 48)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_with_a_residual_or_a_gate_is_bitwise_the_same_in_every_batch(
    dtype: torch.dtype, shape: tuple[int, int], packed: bool
) -> None:
    x, weight = (operand.to(dtype) for operand in cancelling(1100, shape[1], shape[0]))
    x = x * 64  # so that silu of a rounding error times another is no zero in half precision
    residual = torch.randn(1100, shape[0], generator=torch.Generator().manual_seed(1)).mul(1e-6).to(dtype)
    total = pack_weight(weight) if packed else weight
    gated = pack_gated_weight(weight) if packed else weight
    with num_threads(1):
        totals = torch.cat(
            [linear(row, total, None, added) for row, added in zip(x.split(1), residual.split(1), strict=True)]
        )
        gates = torch.cat([gated_linear(row, gated) for row in x.split(1)])
    for threads in (1, 2):
        with num_threads(threads):
            for rows in (1, 2, 3, 17, 31, 33, 65, 129, 300, 600, 1100):
                found = linear(x[-rows:], total, None, residual[-rows:])
                assert torch.equal(found, totals[-rows:]), f"{rows} rows, {threads} threads"
                assert torch.equal(gated_linear(x[-rows:], gated), gates[-rows:]), f"{rows} rows, {threads} threads"


def test_no_rows_give_no_rows() -> None:
    assert linear(torch.empty(0, 48), torch.randn(100, 48)).shape == (0, 100)


def test_row_sizes_are_measured_once() -> None:
    assert row_sizes(torch.float32, 100, 48, "plain") is row_sizes(torch.float32, 100, 48, "plain")


def test_agreeing_sizes_drop_a_kernel_that_sums_in_another_order() -> None:
    x = torch.tensor([1.0, 1e8, -1e8]).repeat(8, 1)

    def run(rows: int) -> torch.Tensor:
        a, b, c = x[-rows:].unbind(1)
        return (a + b) + c if rows < 4 else a + (b + c)

    assert agreeing_sizes(run, (1, 2, 3, 4, 8)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("rows", "calls"),
    [(0, ()), (1, ((1, 4),)), (4, ((4, 4),)), (21, ((16, 16), (5, 16))), (32, ((16, 16), (16, 16)))],
)
def test_rows_are_split_into_sizes(rows: int, calls: tuple[tuple[int, int], ...]) -> None:
    assert split_rows(rows, (4, 16)) == calls
