"""Triton form of inrun_kernels.contract_dots: b^T V a per token, V a never written.

A program forms a tile [BT, BO] of a V^T in float32, multiplies it by b's tile and sums over o: one
partial per (tile of o, direction, token), summed over tiles in a fixed order. V is rounded to the
dtype of a and b for the tensor cores (6e-4 of a median dot in bfloat16); for float16 each direction
is first scaled to a largest entry of 1, which keeps it in range.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_kernels.jit.common import Arguments, Constants, Launch, operand, precision


@triton.jit
def _kernel(
    a, b, v, parts, tokens, o, i, stride_a, stride_b, directions,
    BT: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
    EVEN_T: tl.constexpr, EVEN_O: tl.constexpr, EVEN_I: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """a [p,i], b [p,o], v [k,o,i] of one dtype -> parts [tiles of o, k, p]."""
    block, tile, k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, row = tl.cast(block, tl.int64) * BT, tile * BO
    t, r, c = tl.arange(0, BT), tl.arange(0, BO), tl.arange(0, BI)
    at = a + first * stride_a + (t[:, None] * stride_a + c[None, :])
    vt = v + (tl.cast(k, tl.int64) * o + row) * i + (r[:, None] * i + c[None, :])
    live = t < tokens - first
    acc = tl.zeros((BT, BO), tl.float32)
    for column in range(0, i, BI):
        if EVEN_T and EVEN_I:
            inputs = tl.load(at + column)
        else:
            inputs = tl.load(at + column, mask=live[:, None] & (c[None, :] < i - column), other=0.0)
        if EVEN_O and EVEN_I:
            direction = tl.load(vt + column)
        else:
            direction = tl.load(
                vt + column, mask=(r[:, None] < o - row) & (c[None, :] < i - column), other=0.0
            )
        acc = tl.dot(operand(inputs), tl.trans(operand(direction)), acc, input_precision=PRECISION)
    bt = b + first * stride_b + row + (t[:, None] * stride_b + r[None, :])
    gradients = tl.load(bt, mask=live[:, None] & (r[None, :] < o - row), other=0.0)
    part = parts + (tl.cast(tile, tl.int64) * directions + k) * tokens + first
    tl.store(part + t, tl.sum(acc * gradients.to(tl.float32), 1), mask=live)


def plan(a: Tensor, b: Tensor, V: Tensor) -> tuple[Launch, Tensor]:
    """The launch, and the partial dots [tiles,k,p] it will fill.

    Packed a [p,i], b [p,o] and V [k,o,i] of one dtype.
    """
    tokens, o, i, k = a.shape[0], b.shape[1], a.shape[1], V.shape[0]
    BT, BO, BI, warps, stages = (
        (64, 64, 32, 8, 2) if a.dtype == torch.float32 else (128, 128, 64, 8, 3)
    )
    tiles = triton.cdiv(o, BO)
    parts = torch.empty(tiles, k, tokens, dtype=torch.float32, device=a.device)
    arguments: Arguments = {
        "a": a, "b": b, "v": V, "parts": parts, "tokens": tokens, "o": o, "i": i, "directions": k,
        "stride_a": a.stride(0), "stride_b": b.stride(0),
    }  # fmt: skip
    constants: Constants = {
        "BT": BT, "BO": BO, "BI": BI, "PRECISION": precision(a.dtype),
        "EVEN_T": tokens % BT == 0, "EVEN_O": o % BO == 0, "EVEN_I": i % BI == 0,
    }  # fmt: skip
    grid = triton.cdiv(tokens, BT), tiles, k
    return Launch(_kernel, grid, arguments, constants, warps, stages), parts


def launch(a: Tensor, b: Tensor, V: Tensor) -> Tensor:
    """Dots [k,p] of packed a [p,i], b [p,o]."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    scale = None
    if dtype == torch.float16:
        scale = V.abs().amax((1, 2)).float().clamp_min(torch.finfo(torch.float32).tiny)
        V = V / scale[:, None, None]
    step, parts = plan(a.to(dtype), b.to(dtype), V.to(dtype).contiguous())
    step.run()
    dots = parts.sum(0, dtype=torch.float64).float()
    return dots if scale is None else dots * scale[:, None]
