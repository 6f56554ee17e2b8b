"""Triton form of inrun_kernels.sum_dots: the sum and all dots from one reading."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_kernels.jit.common import Arguments, Launch


@triton.jit
def _kernel(
    g, v, total, parts, samples, width, directions, stride,
    BLOCK: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """g [n,w] any dtype, v [k,w] -> total [w], parts [programs,n,k].

    A program owns one block of columns; float32 sums.
    """
    program = tl.program_id(0)
    column = program * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    k = tl.arange(0, K)
    first = tl.cast(program, tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    rows = v + first + tl.cast(k[:, None], tl.int64) * width + offset[None, :]
    direction = tl.load(rows, mask=(k[:, None] < directions) & inside[None, :], other=0.0).to(
        tl.float32
    )
    acc = tl.zeros((BLOCK,), tl.float32)
    for sample in range(samples):
        row = g + tl.cast(sample, tl.int64) * stride + first
        part = tl.load(row + offset, mask=inside, other=0.0).to(tl.float32)
        acc += part
        dots = tl.sum(direction * part[None, :], 1)
        tl.store(
            parts + (tl.cast(program, tl.int64) * samples + sample) * directions + k,
            dots,
            mask=k < directions,
        )
    tl.store(total + first + offset, acc, mask=inside)


def plan(g: Tensor, V: Tensor) -> tuple[Launch, Tensor, Tensor]:
    """The launch, and the sum [w] and partial dots [programs,n,k] it will fill.

    g [n,w], V [k,w].
    """
    n, width, k = g.shape[0], g.shape[1], V.shape[0]
    padded = triton.next_power_of_2(k)
    block = max(64, 2048 // padded)
    programs = triton.cdiv(width, block)
    total = torch.empty(width, dtype=torch.float32, device=g.device)
    parts = torch.empty(programs, n, k, dtype=torch.float32, device=g.device)
    arguments: Arguments = {
        "g": g, "v": V, "total": total, "parts": parts, "samples": n, "width": width,
        "directions": k, "stride": g.stride(0),
    }  # fmt: skip
    return (
        Launch(_kernel, (programs,), arguments, {"BLOCK": block, "K": padded}, 8, 3),
        total,
        parts,
    )


def launch(g: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Sum [w] and dots [k,n]."""
    step, total, parts = plan(g.contiguous(), V.contiguous())
    step.run()
    return total, parts.sum(0, dtype=torch.float64).float().t().contiguous()
