"""Triton form of the head's softmax: logits become their gradient in place.

A row becomes factor * (softmax - onehot), and its loss is written. Two passes over the row: a
running maximum and sum of exponentials in float32, then the gradient. One program a row.
"""

import triton
import triton.language as tl
from torch import Tensor

from inrun_kernels.jit.common import Arguments, Launch


@triton.jit
def _kernel(z, labels, factors, losses, vocab, stride, BLOCK: tl.constexpr):
    """z [c,v] of row stride `stride`, labels [c] int64, factors [c] -> z, losses [c]."""
    row = tl.program_id(0)
    z += tl.cast(row, tl.int64) * stride
    label = tl.load(labels + row)
    factor = tl.load(factors + row)
    # A label outside the row makes the loss no number: a GPU cannot raise, but must not pass it
    # over.
    target = tl.load(z + label, mask=(label >= 0) & (label < vocab), other=float("nan")).to(
        tl.float32
    )
    offset = tl.arange(0, BLOCK)
    # A finite floor instead of -inf: a lane that has seen nothing subtracts it from itself.
    top = tl.full((BLOCK,), -1e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, vocab, BLOCK):
        inside = offset < vocab - first
        logits = tl.load(z + first + offset, mask=inside, other=0.0).to(tl.float32)
        logits = tl.where(inside, logits, -1e38)
        higher = tl.maximum(top, logits)
        total = total * tl.exp(top - higher) + tl.where(inside, tl.exp(logits - higher), 0.0)
        top = higher
    peak = tl.max(top, 0)
    norm = peak + tl.log(tl.sum(total * tl.exp(top - peak), 0))
    tl.store(losses + row, norm - target)
    for first in range(0, vocab, BLOCK):
        inside = offset < vocab - first
        logits = tl.load(z + first + offset, mask=inside, other=0.0).to(tl.float32)
        gradient = factor * (tl.exp(logits - norm) - tl.where(first + offset == label, 1.0, 0.0))
        tl.store(z + first + offset, gradient, mask=inside)


def plan(z: Tensor, labels: Tensor, factors: Tensor, losses: Tensor) -> Launch:
    """The launch for logits z [c,v] with unit stride along v."""
    arguments: Arguments = {
        "z": z, "labels": labels, "factors": factors, "losses": losses,
        "vocab": z.shape[1], "stride": z.stride(0),
    }  # fmt: skip
    block = min(4096, triton.next_power_of_2(z.shape[1]))
    return Launch(_kernel, (z.shape[0],), arguments, {"BLOCK": block}, 8, 2)


def launch(z: Tensor, labels: Tensor, factors: Tensor, losses: Tensor) -> None:
    """Replace logits z [c,v] by the gradient and fill losses [c]."""
    plan(z, labels.contiguous(), factors.contiguous(), losses).run()
