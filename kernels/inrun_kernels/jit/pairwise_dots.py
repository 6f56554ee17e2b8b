"""Triton form of inrun_kernels.pairwise_dots: tiles of token Grams in registers.

In float32; [t,s] is never in memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_kernels.jit.common import Arguments, Constants, Launch, operand, precision


@triton.jit
def _gram(
    x, y, rows, columns, d,
    BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x [rows.., d] y [columns.., d]^T of at most BT and BS rows, summed over d in blocks."""
    t, s, c = tl.arange(0, BT), tl.arange(0, BS), tl.arange(0, BD)
    acc = tl.zeros((BT, BS), tl.float32)
    xt, yt = x + (t[:, None] * d + c[None, :]), y + (s[:, None] * d + c[None, :])
    for first in range(0, d, BD):
        inside = c[None, :] < d - first
        left = tl.load(xt + first, mask=(t[:, None] < rows) & inside, other=0.0)
        right = tl.load(yt + first, mask=(s[:, None] < columns) & inside, other=0.0)
        acc = tl.dot(operand(left), tl.trans(operand(right)), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _kernel(
    a, b, av, bv, parts, t, s, i, o, samples, validations,
    BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """a [n,t,i], b [n,t,o], av [m,s,i], bv [m,s,o] contiguous -> parts [blocks of t, n, m]."""
    block, n, m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.cast(n, tl.int64) * t + block * BT
    acc = tl.zeros((BT,), tl.float32)
    for first in range(0, s, BS):
        other = tl.cast(m, tl.int64) * s + first
        inputs = _gram(
            a + token * i, av + other * i, t - block * BT, s - first, i, BT, BS, BD, PRECISION
        )
        gradients = _gram(
            b + token * o, bv + other * o, t - block * BT, s - first, o, BT, BS, BD, PRECISION
        )
        acc += tl.sum(inputs * gradients, 1)
    tl.store(parts + (tl.cast(block, tl.int64) * samples + n) * validations + m, tl.sum(acc))


def plan(a: Tensor, b: Tensor, av: Tensor, bv: Tensor) -> tuple[Launch, Tensor]:
    """The launch for operands of one dtype, and the partial dots [blocks,n,m] it will fill."""
    (n, t, i), o, (m, s, _) = a.shape, b.shape[2], av.shape
    BT, BS, BD, warps, stages = (
        (32, 32, 32, 4, 2) if a.dtype == torch.float32 else (64, 64, 64, 4, 3)
    )
    blocks = triton.cdiv(t, BT)
    parts = torch.empty(blocks, n, m, dtype=torch.float32, device=a.device)
    arguments: Arguments = {
        "a": a, "b": b, "av": av, "bv": bv, "parts": parts, "t": t, "s": s, "i": i, "o": o,
        "samples": n, "validations": m,
    }  # fmt: skip
    constants: Constants = {"BT": BT, "BS": BS, "BD": BD, "PRECISION": precision(a.dtype)}
    return Launch(_kernel, (blocks, n, m), arguments, constants, warps, stages), parts


def launch(a: Tensor, b: Tensor, av: Tensor, bv: Tensor) -> Tensor:
    """Dots [n,m]."""
    dtype = torch.promote_types(
        torch.promote_types(a.dtype, b.dtype), torch.promote_types(av.dtype, bv.dtype)
    )
    step, parts = plan(*(x.to(dtype).contiguous() for x in (a, b, av, bv)))
    step.run()
    return parts.sum(0, dtype=torch.float64).float()
