"""Triton form of a norm's per-sample gradients, in one pass over x and b.

sum_t b (x - mean) rstd of the scale and sum_t b of the shift.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrun_kernels.jit.common import Arguments, Constants, Launch


@triton.jit
def _kernel(
    x, b, rstd, mean, weight, bias, t, width,
    BT: tl.constexpr, BD: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """x, b [n,t,i] contiguous, rstd and mean [n,t] -> weight, bias [n,i], float32."""
    sample, column = tl.program_id(0), tl.program_id(1) * BD + tl.arange(0, BD)
    rows = tl.arange(0, BT)
    scale = tl.zeros((BD,), tl.float32)
    shift = tl.zeros((BD,), tl.float32)
    for first in range(0, t, BT):
        token = tl.cast(sample, tl.int64) * t + first + rows
        live = rows < t - first
        at = token[:, None] * width + column[None, :]
        inside = live[:, None] & (column[None, :] < width)
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        gradients = tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(rstd + token, mask=live, other=0.0).to(tl.float32)
        if CENTRED:
            values -= tl.load(mean + token, mask=live, other=0.0).to(tl.float32)[:, None]
        scale += tl.sum(gradients * values * inverse[:, None], 0)
        shift += tl.sum(gradients, 0)
    at_out = tl.cast(sample, tl.int64) * width + column
    tl.store(weight + at_out, scale, mask=column < width)
    tl.store(bias + at_out, shift, mask=column < width)


def plan(x: Tensor, b: Tensor, rstd: Tensor, mean: Tensor | None) -> tuple[Launch, Tensor, Tensor]:
    """The launch, and the per-sample gradients [n,i] of scale and shift it will fill."""
    n, t, width = x.shape
    weight = torch.empty(n, width, dtype=torch.float32, device=x.device)
    bias = torch.empty_like(weight)
    arguments: Arguments = {
        "x": x, "b": b, "rstd": rstd, "mean": rstd if mean is None else mean,
        "weight": weight, "bias": bias, "t": t, "width": width,
    }  # fmt: skip
    constants: Constants = {"BT": 32, "BD": 128, "CENTRED": mean is not None}
    return Launch(_kernel, (n, triton.cdiv(width, 128)), arguments, constants, 4, 3), weight, bias


def launch(x: Tensor, b: Tensor, rstd: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor]:
    """Per-sample gradients [n,i] of scale and shift."""
    centre = None if mean is None else mean.contiguous()
    step, weight, bias = plan(x.contiguous(), b.contiguous(), rstd.contiguous(), centre)
    step.run()
    return weight, bias
