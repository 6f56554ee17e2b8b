"""Triton form of inrun_kernels.embedding_dots: V's rows gathered and dotted."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_kernels.jit.common import Arguments, Launch


@triton.jit
def _kernel(ids, b, v, dots, tokens, rows, width, stride, BT: tl.constexpr, BD: tl.constexpr):
    """ids [p], b [p,o], v [k,rows,o] -> dots [k,p], float32."""
    block, k = tl.program_id(0), tl.program_id(1)
    t, c = block * BT + tl.arange(0, BT), tl.arange(0, BD)
    live = t < tokens
    token_id = tl.load(ids + t, mask=live, other=0).to(tl.int64)
    known = (token_id >= 0) & (token_id < rows)
    row = tl.where(known, token_id, 0) + tl.cast(k, tl.int64) * rows
    acc = tl.zeros((BT,), tl.float32)
    for first in range(0, width, BD):
        inside = live[:, None] & (c[None, :] < width - first)
        gradients = tl.load(
            b + tl.cast(t[:, None], tl.int64) * stride + first + c[None, :], mask=inside, other=0.0
        )
        direction = tl.load(v + row[:, None] * width + first + c[None, :], mask=inside, other=0.0)
        acc += tl.sum(gradients.to(tl.float32) * direction.to(tl.float32), 1)
    # An id outside the table makes its dot no number: a GPU cannot raise, but must not pass it
    # over.
    tl.store(
        dots + tl.cast(k, tl.int64) * tokens + t, tl.where(known, acc, float("nan")), mask=live
    )


def plan(ids: Tensor, b: Tensor, V: Tensor) -> tuple[Launch, Tensor]:
    """The launch for ids [p], b [p,o], V [k,v,o], and the dots [k,p] it will fill."""
    dots = torch.empty(V.shape[0], ids.shape[0], dtype=torch.float32, device=b.device)
    arguments: Arguments = {
        "ids": ids, "b": b, "v": V, "dots": dots, "tokens": ids.shape[0],
        "rows": V.shape[1], "width": V.shape[2], "stride": b.stride(0),
    }  # fmt: skip
    grid = (triton.cdiv(ids.shape[0], 16), V.shape[0])
    return Launch(_kernel, grid, arguments, {"BT": 16, "BD": 128}, 4, 3), dots


def launch(ids: Tensor, b: Tensor, V: Tensor) -> Tensor:
    """Dots [k,p]."""
    step, dots = plan(ids.contiguous(), b, V.contiguous())
    step.run()
    return dots
