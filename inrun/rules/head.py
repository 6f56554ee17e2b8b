"""The language model's head with its loss, `inrun_kernels.cross_entropy_sum`: everything about the
logits is formed once, in the forward.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import inrun_kernels
from inrun.rules.factors import Dense, Factor, Scaled, wide
from inrun.rules.protocols import Origin, Probes, Sink, Tracker
from inrun.rules.registry import compiled, fused
from inrun_kernels import memory
from inrun_kernels.head import CROSS_ENTROPY_SUM


@fused(CROSS_ENTROPY_SUM, same_bits=True)
def fused_head(
    tracker: Tracker, x: Tensor, w: Tensor, targets: Tensor, ignore_index: int
) -> tuple[Tensor]:
    origin = tracker.parameter(w)
    if origin is not None and x.shape[0] == tracker.recorder.n and tracker.plain(x):
        return (FusedHead.apply(x, w, targets, ignore_index, tracker.recorder, origin),)
    with tracker:  # a head made of other parameters: its operations are seen one by one
        return (inrun_kernels.cross_entropy_sum_composite(x, w, targets, ignore_index),)


class FusedHead(torch.autograd.Function):
    """The head's loss of hidden states x [n,t,i], w [v,i], at an incoming gradient of one."""

    @staticmethod
    def forward(ctx, x, w, targets, ignore_index, recorder, origin):
        loss, dx, wgrad, ctx.record = _formed(
            recorder, origin, x.detach(), w.detach(), targets, ignore_index
        )
        ctx.save_for_backward(dx, wgrad)
        return loss

    @staticmethod
    def backward(ctx, gradient):
        dx, wgrad = ctx.saved_tensors
        with torch._C.DisableTorchFunction(), torch.no_grad():
            ctx.record(gradient)
            scaled = [memory.scaled(saved, gradient) for saved in (dx, wgrad)]
            return *scaled, None, None, None, None


def _formed(
    recorder: Sink, origin: Origin, x: Tensor, w: Tensor, targets: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], None]]:
    """(loss, dx, wgrad, record); `record` is to be called with the loss's own gradient."""
    V = recorder.directions_for(origin)
    if V is not None:
        losses, dx, wgrad, dots = inrun_kernels.linear_cross_entropy_dots(
            x, w, targets, V, weights=_ones(x, targets), ignore_index=ignore_index
        )
        return (
            losses.sum(),
            dx,
            wgrad.to(w.dtype),
            lambda gradient: recorder.take_dots(origin, gradient * dots, dots.dtype),
        )
    g = recorder.buffer(tuple(w.shape), x)
    if g is None:
        loss, dx, wgrad = CROSS_ENTROPY_SUM(x, w, targets, ignore_index)
        return (
            loss,
            dx,
            wgrad,
            lambda gradient: recorder.sink(
                "head", origin, HeadFactor(x, w, targets, ignore_index, gradient)
            ),
        )
    loss, dx, g = inrun_kernels.cross_entropy_sum_per_sample(
        x, w, targets, ignore_index=ignore_index, out=g
    )
    return (
        loss,
        dx,
        inrun_kernels.sample_sum(g).to(w.dtype),
        lambda gradient: recorder.sink("head", origin, Scaled(Dense(g), gradient)),
    )


def _ones(x: Tensor, targets: Tensor) -> Tensor:
    """A weight of one for each target, in the dtype of the loss."""
    return torch.ones_like(
        targets, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32
    )


@dataclass
class HeadFactor(Factor):
    """The head's per-sample gradients, formed again from hidden states when they are asked for."""

    x: Tensor
    """Hidden states [n,t,i]."""
    w: Tensor
    """The head's weight [v,i], detached."""
    targets: Tensor
    """Token ids [n,t]."""
    ignore_index: int
    """The id that is no target."""
    gradient: Tensor
    """The loss's own gradient, one number."""

    def dots(self, V: Tensor) -> Tensor:
        return self.gradient * inrun_kernels.cross_entropy_sum_dots(
            self.x, self.w, self.targets, V, ignore_index=self.ignore_index
        )

    def dense(self, i: int) -> Tensor:
        one = slice(i, i + 1)
        return self.gradient * wide(
            inrun_kernels.cross_entropy_sum_per_sample(
                self.x[one], self.w, self.targets[one], ignore_index=self.ignore_index
            )[2][0]
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.x,)


@compiled(CROSS_ENTROPY_SUM)
def compiled_head(
    probes: Probes, x: Tensor, w: Tensor, targets: Tensor, ignore_index: int
) -> tuple[Tensor] | None:
    found = probes.of(w)
    if found is None:
        return None
    loss = inrun_kernels.linear_cross_entropy(
        x, w, targets, *found, weights=_ones(x, targets), ignore_index=ignore_index
    )
    return (loss,)
