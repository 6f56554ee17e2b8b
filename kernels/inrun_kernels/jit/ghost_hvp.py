"""Triton form of inrun_kernels.ghost_hvp: b^T da + db^T a in one accumulator.

Each token's four rows are read once per tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_kernels.jit.common import Arguments, Constants, Launch, operand, precision, splits_for


@triton.jit
def _kernel(
    a, b, da, db, parts, tokens, o, i, per_split,
    BO: tl.constexpr, BI: tl.constexpr, BT: tl.constexpr,
    EVEN_O: tl.constexpr, EVEN_I: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """a, da [p,i], b, db [p,o] contiguous, of one dtype -> parts [splits,o,i].

    A split owns per_split tokens.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    columns = tl.cdiv(i, BI)
    row, column = (tile // columns) * BO, (tile % columns) * BI
    t, r, c = tl.arange(0, BT), tl.arange(0, BO), tl.arange(0, BI)
    first = split * per_split
    count = tl.minimum(tokens - first, per_split)
    at = tl.cast(first, tl.int64) * i + column + (t[:, None] * i + c[None, :])
    bt = tl.cast(first, tl.int64) * o + row + (t[:, None] * o + r[None, :])
    acc = tl.zeros((BO, BI), tl.float32)
    for token in range(0, count, BT):
        live = t[:, None] < count - token
        inside_i = live if EVEN_I else live & (c[None, :] < i - column)
        inside_o = live if EVEN_O else live & (r[None, :] < o - row)
        offset_a, offset_b = tl.cast(token, tl.int64) * i + at, tl.cast(token, tl.int64) * o + bt
        gradients = tl.load(b + offset_b, mask=inside_o, other=0.0)
        tangents = tl.load(da + offset_a, mask=inside_i, other=0.0)
        acc = tl.dot(
            tl.trans(operand(gradients)), operand(tangents), acc, input_precision=PRECISION
        )
        tangents_b = tl.load(db + offset_b, mask=inside_o, other=0.0)
        inputs = tl.load(a + offset_a, mask=inside_i, other=0.0)
        acc = tl.dot(tl.trans(operand(tangents_b)), operand(inputs), acc, input_precision=PRECISION)
    at_out = (
        parts + (tl.cast(split, tl.int64) * o + row) * i + column + (r[:, None] * i + c[None, :])
    )
    tl.store(at_out, acc, mask=(r[:, None] < o - row) & (c[None, :] < i - column))


def plan(a: Tensor, b: Tensor, da: Tensor, db: Tensor, splits: int) -> tuple[Launch, Tensor]:
    """The launch, and the partial products [splits,o,i] it will fill.

    The packed operands are of one dtype.
    """
    tokens, o, i = a.shape[0], b.shape[1], a.shape[1]
    BO, BI, BT, warps, stages = tile_for(a.dtype)
    per_split = triton.cdiv(triton.cdiv(tokens, splits), BT) * BT
    parts = torch.empty(triton.cdiv(tokens, per_split), o, i, dtype=torch.float32, device=a.device)
    arguments: Arguments = {
        "a": a, "b": b, "da": da, "db": db, "parts": parts, "tokens": tokens, "o": o, "i": i,
        "per_split": per_split,
    }  # fmt: skip
    constants: Constants = {
        "BO": BO, "BI": BI, "BT": BT, "PRECISION": precision(a.dtype),
        "EVEN_O": o % BO == 0, "EVEN_I": i % BI == 0,
    }  # fmt: skip
    tiles = triton.cdiv(o, BO) * triton.cdiv(i, BI)
    return Launch(_kernel, (tiles, parts.shape[0]), arguments, constants, warps, stages), parts


def tile_for(dtype: torch.dtype) -> tuple[int, int, int, int, int]:
    """BO, BI, BT, warps, stages."""
    return (64, 32, 32, 4, 2) if dtype == torch.float32 else (128, 64, 32, 8, 3)


def launch(a: Tensor, b: Tensor, da: Tensor, db: Tensor) -> Tensor:
    """The product [o,i] of packed operands."""
    dtype = torch.promote_types(
        torch.promote_types(a.dtype, b.dtype), torch.promote_types(da.dtype, db.dtype)
    )
    a, b, da, db = (x.to(dtype).contiguous() for x in (a, b, da, db))
    BO, BI, BT, _, _ = tile_for(dtype)
    tiles = triton.cdiv(b.shape[1], BO) * triton.cdiv(a.shape[1], BI)
    step, parts = plan(
        a, b, da, db, splits_for(tiles, max(1, triton.cdiv(a.shape[0], 8 * BT)), a.device)
    )
    step.run()
    return parts.sum(0)
