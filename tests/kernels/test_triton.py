"""Each Triton kernel against its torch twin on odd shapes (interpreted where there is no GPU); compiled for sm_90."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from penstock.kernels.attention import AttentionBatch, paged_attention
from penstock.kernels.rms_norm import rms_norm
from penstock.kernels.rope import rope_and_write
from penstock.kernels.swiglu import swiglu
from tests.kernels.paged import make_batch, write_contexts

pytest.importorskip("triton", reason="Triton is not installed: its kernels are not tested here.")

from penstock.kernels.attention_triton import paged_attention_triton
from penstock.kernels.rms_norm_triton import rms_norm_triton
from penstock.kernels.rope_triton import rope_and_write_triton
from penstock.kernels.swiglu_triton import swiglu_triton

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(batch: AttentionBatch) -> AttentionBatch:
    tensors = (batch.query_starts, batch.context_lens, batch.block_tables, batch.slots, batch.positions)
    return AttentionBatch(*(x.to(DEVICE) for x in tensors), batch.max_query_len, batch.max_context_len)


def assert_like(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found.float().cpu(), expected.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("rows", "dim"), [(1, 16), (3, 100), (17, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_equals_its_twin(dtype: torch.dtype, rows: int, dim: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 2 * dim).to(dtype), torch.randn(dim).to(dtype)
    x = x[:, :dim]  # rows apart by more than their length
    assert_like(rms_norm_triton(x.to(DEVICE), weight.to(DEVICE), 1e-5), rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("shape", [(1, 32), (3, 200), (2, 3, 2100)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_equals_its_twin(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(shape).to(dtype)
    assert_like(swiglu_triton(gate_up.to(DEVICE)), swiglu(gate_up))


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "rotary_dim"), [(9, 3, 16, 16), (5, 5, 80, 80), (2, 1, 64, 24)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_equals_its_twin(dtype: torch.dtype, heads: int, kv_heads: int, dim: int, rotary_dim: int) -> None:
    torch.manual_seed(0)
    batch = make_batch([6, 11], [3, 1], 8)
    qkv = torch.randn(4, heads + 2 * kv_heads, dim).to(dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    table = torch.randn(16, rotary_dim)
    kv = torch.zeros(int(batch.block_tables.max()) + 1, kv_heads, 2, 2, 8, dim, dtype=dtype)
    found_kv = kv.to(DEVICE, copy=True)
    expected = rope_and_write(torch.cat((q, k, v), dim=1), table, batch, kv[:, :, 1])
    found = rope_and_write_triton(
        *(x.to(DEVICE) for x in (q, k, v, table, batch.positions, batch.slots)), found_kv[:, :, 1]
    )
    assert_like(found, expected)
    assert_like(found_kv, kv)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_size", "window", "dtype"),
    [
        (9, 3, 64, 8, None, torch.float32),
        (9, 3, 16, 16, 7, torch.float32),
        (9, 3, 64, 16, 40, torch.bfloat16),
        (5, 5, 80, 32, None, torch.float16),
        (5, 5, 16, 16, 40, torch.float32),
        (14, 2, 128, 8, None, torch.float16),
        (14, 2, 64, 32, 33, torch.float32),
    ],
)
def test_paged_attention_equals_its_twin_among_nan_slots(
    heads: int, kv_heads: int, dim: int, block_size: int, window: int | None, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies bf16 matrices as integers: bf16 attention needs a GPU.")
    torch.manual_seed(0)
    for lengths, rows in (([1, 33, 5, 70], [1, 33, 1, 17]), ([3, 41, 64], [1, 1, 1])):
        batch = make_batch(lengths, rows, block_size)
        keys, values = ([torch.randn(n, kv_heads, dim).to(dtype) for n in lengths] for _ in "kv")
        kv = write_contexts(batch, keys, values, block_size)[:, :, 1]
        q = torch.randn(sum(rows), heads, dim).to(dtype)
        expected = paged_attention(q, kv, batch, scale=dim**-0.5, window=window)
        found = paged_attention_triton(q.to(DEVICE), kv.to(DEVICE), on_device(batch), scale=dim**-0.5, window=window)
        assert_like(found, expected)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from penstock.kernels import attention_triton, rms_norm_triton, rope_triton, swiglu_triton

def compile_for_hopper(kernel, types, **constants):
    names = kernel.arg_names
    signature = dict(zip(names, types.split()), **{name: "constexpr" for name in constants})
    assert list(signature) == names, (signature, names)
    source = ASTSource(fn=kernel, signature=signature, constexprs={(names.index(n),): c for n, c in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert ".target sm_90" in compiled.asm["ptx"], compiled.asm["ptx"][:500]
    assert len(compiled.asm["cubin"]) > 0
    return compiled.asm["ptx"]

for kind, rows, group in (("fp32", 16, 3), ("fp16", 64, 3), ("bf16", 64, 7)):
    p = f"*{kind} "
    compile_for_hopper(rms_norm_triton._rms_norm_kernel, 3 * p + "i32 fp32", DIM=576, BLOCK=1024)
    compile_for_hopper(swiglu_triton._swiglu_kernel, 2 * p + "i32", WIDTH=1536, BLOCK=1024)
    compile_for_hopper(
        rope_triton._rope_kernel, 3 * p + "*fp32 *i64 *i64 " + 2 * p + 11 * "i32 ",
        HEADS=9, DIM=80, HALF=40, BLOCK_HALF=64, BLOCK_DIM=128, BLOCK_SIZE=16,
    )
    ptx = compile_for_hopper(
        attention_triton._attention_kernel, 3 * p + 3 * "*i32 " + "i32 fp32 " + 7 * "i32 ",
        HEADS=group * 2, GROUP=group, DIM=80, BLOCK_DIM=128, BLOCK_SIZE=16, TILE_ROWS=rows,
        TILE_TOKENS=rows // group, TILE_KEYS=32 if kind == "fp32" else 64, WINDOW=0,
    )
    assert "tf32" not in ptx
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kernels_compile_for_hopper_without_a_gpu() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.stdout == "compiled\n", done.stderr[-3000:]
