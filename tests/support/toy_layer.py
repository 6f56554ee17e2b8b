"""A kind of layer from outside the package, all forms in this file; tests/engine/test_toy_layer.py
uses it.

``square_gain(x, w) = x * w^2`` of x [n,t,d] and w [d]: a sample's gradient is sum_t b_nt x_nt 2 w.
"""

import torch
from torch import Tensor, nn

from inrun.rules import Dense, Factor, Probes, Tracker, compiled, fused, rule
from inrun.rules.factors import token_rows, wide


@torch.library.custom_op("toy::square_gain", mutates_args=())
def square_gain(x: Tensor, w: Tensor) -> Tensor:
    return x * w * w


@square_gain.register_fake
def _(x, w):
    return torch.empty_like(x)


def backward(ctx, b):
    x, w = ctx.saved_tensors
    return b * w * w, (b * x).flatten(0, -2).sum(0) * 2 * w


square_gain.register_autograd(
    backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)

#: what a torch function mode sees of a call
SQUARE_GAIN = torch.ops.toy.square_gain.default


@rule(SQUARE_GAIN, argument="w")
def exact_gain(n: int, b: Tensor, x: Tensor, w: Tensor) -> Factor:
    return Dense(wide(token_rows(b * x, n)).sum(1) * 2 * w)


@fused(SQUARE_GAIN)
def fused_gain(tracker: Tracker, x: Tensor, w: Tensor) -> Tensor | None:
    origin = tracker.parameter(w)
    return None if origin is None else FusedGain.apply(x, w, tracker.recorder, origin)


class FusedGain(torch.autograd.Function):
    """The per-sample gradients are handed over, and their sum is the gradient."""

    #: calls of the backward, for the test to see that this form was taken
    calls = 0

    @staticmethod
    def forward(ctx, x, w, recorder, origin):
        ctx.save_for_backward(x, w)
        ctx.recorder, ctx.origin = recorder, origin
        return x * w * w

    @staticmethod
    def backward(ctx, b):
        x, w = (tensor.detach() for tensor in ctx.saved_tensors)
        FusedGain.calls += 1
        with torch._C.DisableTorchFunction(), torch.no_grad():
            g = token_rows(b * x, ctx.recorder.n).sum(1) * 2 * w
            V = ctx.recorder.directions_for(ctx.origin)
            if V is None:
                ctx.recorder.sink("square_gain", ctx.origin, Dense(g))
            else:
                ctx.recorder.take_dots(ctx.origin, wide(V) @ wide(g).T, g.dtype)
            return b * w * w, g.sum(0), None, None


@compiled(SQUARE_GAIN)
def compiled_gain(probes: Probes, x: Tensor, w: Tensor) -> Tensor | None:
    found = probes.of(w)
    if found is None:
        return None
    V, probe = found
    nothing = (probe.mT @ (2 * w.detach() * V)).view(probes.n, 1, -1)
    return SQUARE_GAIN(x, w) + x.detach() * nothing


class SquareGain(nn.Module):
    """The toy operation as a module."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return SQUARE_GAIN(x, self.weight)
