"""Operations whose own backward takes the dots: a linear layer, and the language-model head with its loss.

A tap beside torch's backward costs one more product of weight-gradient size. Here the weight gradient itself is taken sample by sample, and each sample's part is
dotted (or kept) on its way into the sum. The sum over samples is then associated in another order than torch's single product, within the rounding that
kernels.wgrad_dots states; this is the one place where attribution may change the last bits of the training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from inrun.ghost.origin import Origin
from inrun.rules.factors import Dense, Factor, token_rows, wide


class FusedLinear(torch.autograd.Function):
    """y = x w^T + bias; the recorder takes (a, b) of the weight and may give the weight gradient in return."""

    @staticmethod
    def forward(ctx, x, w, bias, recorder, w_origin: Origin | None, bias_origin: Origin | None):
        ctx.save_for_backward(x, w)
        ctx.recorder, ctx.w_origin, ctx.bias_origin = recorder, w_origin, bias_origin
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(x, w, bias)

    @staticmethod
    def backward(ctx, b):
        # detached, as in inrun.ghost.watch: what the recorder keeps must not hold the graph, which holds the recorder
        x, w = (tensor.detach() for tensor in ctx.saved_tensors)
        to_x, to_w, to_bias = ctx.needs_input_grad[:3]
        n = ctx.recorder.n
        with torch._C.DisableTorchFunction(), torch.no_grad():
            dx = (b @ w.to(b.dtype)).to(x.dtype) if to_x else None
            wgrad = bias_grad = None
            if to_w:
                a, rows = token_rows(x, n).to(b.dtype), token_rows(b, n)
                if ctx.w_origin is not None:
                    wgrad = ctx.recorder.outer(ctx.w_origin, a, rows, tuple(w.shape))
                if wgrad is None:
                    wgrad = rows.flatten(0, 1).t() @ a.flatten(0, 1)
                wgrad = wgrad.to(w.dtype)
            if to_bias:
                sums = wide(token_rows(b, n)).sum(1)
                bias_grad = sums.sum(0).to(ctx.bias_dtype)
                if ctx.bias_origin is not None:
                    ctx.recorder.sink("linear", ctx.bias_origin, Dense(sums))
        return dx, wgrad, bias_grad, None, None, None


class FusedHead(torch.autograd.Function):
    """`kernels.cross_entropy_sum` of hidden states x [n,t,i], w [v,i]; everything is formed in the forward, at an incoming gradient of one."""

    @staticmethod
    def forward(ctx, x, w, targets, ignore_index, recorder, origin: Origin):
        loss, dx, wgrad, part = recorder.head(origin, x.detach(), w.detach(), targets, ignore_index)
        ctx.save_for_backward(dx, wgrad)
        ctx.recorder, ctx.origin, ctx.part = recorder, origin, part
        return loss

    @staticmethod
    def backward(ctx, gradient):
        dx, wgrad = ctx.saved_tensors
        with torch._C.DisableTorchFunction(), torch.no_grad():
            ctx.recorder.head_part(ctx.origin, ctx.part, gradient)
            return dx * gradient.to(dx.dtype), wgrad * gradient.to(wgrad.dtype), None, None, None, None


class HeadFactor(Factor):
    """The head's per-sample gradients, formed again from hidden states when they are asked for: x [n,t,i], w [v,i], times the loss's own gradient."""

    def __init__(self, x: Tensor, w: Tensor, targets: Tensor, ignore_index: int, gradient: Tensor):
        self.x, self.w, self.targets, self.ignore_index, self.gradient = x, w.detach(), targets, ignore_index, gradient

    def dots(self, V: Tensor) -> Tensor:
        return self.gradient * kernels.cross_entropy_sum_dots(
            self.x, self.w, self.targets, V, ignore_index=self.ignore_index
        )

    def dense(self, i: int) -> Tensor:
        one = slice(i, i + 1)
        return self.gradient * wide(
            kernels.cross_entropy_sum_per_sample(
                self.x[one], self.w, self.targets[one], ignore_index=self.ignore_index
            )[2][0]
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.x,)
