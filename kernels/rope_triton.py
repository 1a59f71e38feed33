"""Triton kernel of rope.py: one program per token and head; those of KV heads also write K and V to the cache."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor


def rope_and_write_triton(
    q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, positions: Tensor, slots: Tensor, kv: Tensor
) -> Tensor:
    """As `rope_and_write`, with the batch's positions and slots."""
    num_tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    turned = torch.empty((num_tokens, heads, dim), dtype=q.dtype, device=q.device)
    assert q.stride(2) == k.stride(2) == v.stride(2) == kv.stride(4) == cos_sin.stride(1) == 1
    if num_tokens:
        half = cos_sin.shape[1] // 2
        _rope_kernel[(num_tokens, heads + kv_heads)](
            q,
            k,
            v,
            cos_sin,
            positions,
            slots,
            kv,
            turned,
            *q.stride()[:2],
            *k.stride()[:2],
            *v.stride()[:2],
            cos_sin.stride(0),
            *kv.stride()[:4],
            HEADS=heads,
            DIM=dim,
            HALF=half,
            BLOCK_HALF=triton.next_power_of_2(half),
            BLOCK_DIM=triton.next_power_of_2(dim),
            BLOCK_SIZE=kv.shape[3],
        )
    return turned


@triton.jit
def _rope_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    cos_sin_ptr,
    position_ptr,
    slot_ptr,
    kv_ptr,
    turned_ptr,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    cos_sin_stride,
    block_stride,
    kv_head_stride,
    part_stride,
    slot_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    if head < HEADS:
        source = q_ptr + token * q_stride + head * q_head_stride
        target = turned_ptr + (token * HEADS + head) * DIM
    else:
        kv_head = head - HEADS
        source = k_ptr + token * k_stride + kv_head * k_head_stride
        slot = tl.load(slot_ptr + token)
        place = slot // BLOCK_SIZE * block_stride + kv_head * kv_head_stride + slot % BLOCK_SIZE * slot_stride
        target = kv_ptr + place
        dim = tl.arange(0, BLOCK_DIM)
        value = tl.load(v_ptr + token * v_stride + kv_head * v_head_stride + dim, mask=dim < DIM)
        tl.store(target + part_stride + dim, value, mask=dim < DIM)
    angle = cos_sin_ptr + tl.load(position_ptr + token) * cos_sin_stride
    pair = tl.arange(0, BLOCK_HALF)
    cos = tl.load(angle + pair, mask=pair < HALF, other=0.0)
    sin = tl.load(angle + HALF + pair, mask=pair < HALF, other=0.0)
    first = tl.load(source + pair, mask=pair < HALF, other=0.0).to(tl.float32)
    second = tl.load(source + HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)
    kind = turned_ptr.dtype.element_ty
    tl.store(target + pair, (first * cos - second * sin).to(kind), mask=pair < HALF)
    tl.store(target + HALF + pair, (second * cos + first * sin).to(kind), mask=pair < HALF)
    if 2 * HALF < DIM:
        rest = tl.arange(0, BLOCK_DIM)
        kept = (rest >= 2 * HALF) & (rest < DIM)
        tl.store(target + rest, tl.load(source + rest, mask=kept), mask=kept)
