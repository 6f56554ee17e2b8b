"""The head's summed loss, differentiable twice, without whole logits.

    z = x w^T     b = softmax(z) - onehot
    first derivatives, at an incoming gradient s:  dx = s b w,  dw = s b^T x

For cotangents vx of dx and vw of dw (a direction in the space of the inputs), with the logits'
tangent z' = vx w^T + x vw^T and b' = p o (z' - <p, z'>), p = softmax(z):

    d<dx, vx> + <dw, vw>  /  dx = s (b' w + b vw)
                          /  dw = s (b'^T x + b^T vx)
                          /  ds = <b, z'>

Six products of the head's size beside the three of the first derivatives; written as torch
operations they are as many, with a dozen passes over [tokens, vocab] between them. b is kept from
the first derivatives where it fits the buffer, and formed again chunk by chunk where it does not.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from inrun_kernels import memory
from inrun_kernels.backend import accumulation_dtype
from inrun_kernels.head.chunks import (
    Chunk,
    HeadPass,
    add_product,
    cached_rows,
    check_head,
    unit_weights,
)
from inrun_kernels.head.loss import first_derivatives
from inrun_kernels.layers import autocast


def cross_entropy_sum_twice(
    x: Tensor, w: Tensor, targets: Tensor, ignore_index: int = -100
) -> Tensor:
    """`inrun_kernels.cross_entropy_sum` that can be differentiated twice.

    x [n,t,i], w [v,i], targets [n,t] int64; a scalar in float32 (float64 if an input is).
    """
    check_head("cross_entropy_sum_twice", x, w, targets, None)
    return _Loss.apply(autocast(x), w, targets, ignore_index)


class _Derivatives:
    """First and second derivatives at an incoming gradient of 1, chunk by chunk."""

    def __init__(self, x: Tensor, w: Tensor, targets: Tensor, ignore_index: int):
        weights = unit_weights(x, targets)
        self.head = HeadPass(x, w, targets, weights, ignore_index, "torch")
        self.wide = accumulation_dtype(x)
        self.kept: Chunk | None = None  # all tokens, if they are one chunk

    def chunks(self) -> Iterator[Chunk]:
        """The pass, which is made once only if one chunk holds all tokens."""
        if self.kept is not None:
            yield self.kept
            return
        for chunk in self.head.gradients():
            if len(chunk.x) == len(self.head.x):
                self.kept = chunk
            yield chunk

    def first(self) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, b w [p,i], b^T x [v,i])."""
        head = self.head
        dw = memory.empty(head.w.shape, self.wide, head.x.device)
        dx = first_derivatives(self.chunks(), head, dw)
        return head.losses.mul_(head.counted).sum(), dx, dw

    def second(self, vx: Tensor, vw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b' w + b vw [p,i], b'^T x + b^T vx [v,i], <b, z'>)."""
        head = self.head
        hx = torch.empty_like(head.x)
        hw = memory.empty(head.w.shape, self.wide, head.x.device)
        inner = head.factors.new_zeros(())
        for chunk in self.chunks():
            b, tokens = chunk.b, chunk.tokens
            tangent = memory.empty(b.shape, b.dtype, b.device)
            torch.mm(vx[tokens], head.w.t(), out=tangent)
            tangent.addmm_(chunk.x, vw.t())
            inner += _softmax_tangent(
                b, tangent, head.labels[tokens], head.counted[tokens], self.wide
            )
            torch.mm(tangent, head.w, out=hx[tokens])
            hx[tokens].addmm_(b, vw)
            add_product(hw, tangent, chunk.x, fresh=tokens.start == 0)
            add_product(hw, b, vx[tokens], fresh=False)
        return hx, hw, inner


def _softmax_tangent(
    b: Tensor, tangent: Tensor, labels: Tensor, counted: Tensor, wide: torch.dtype
) -> Tensor:
    """Replace z' [c,v] by b' = p o (z' - <p, z'>), 0 where not counted; returns <b, z'>."""
    inner = torch.zeros((), dtype=wide, device=b.device)
    for block in cached_rows(b, 2 * wide.itemsize):
        keep = counted[block, None].to(wide)
        p, dz = b[block].to(wide, copy=True), tangent[block].to(wide)
        inner += (p * dz).sum()
        p.scatter_add_(1, labels[block, None], keep)
        mean = torch.linalg.vecdot(p, dz)[:, None]
        tangent[block] = dz.sub(mean).mul_(p)
    return inner


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, targets, ignore_index):
        derivatives = _Derivatives(x.detach(), w.detach(), targets, ignore_index)
        loss, dx, dw = derivatives.first()
        ctx.save_for_backward(x, w)
        ctx.derivatives, ctx.gradients = derivatives, (dx.view(x.shape), dw)
        return loss

    @staticmethod
    def backward(ctx, s):
        x, w = ctx.saved_tensors
        dx, dw = _Gradient.apply(x, w, s, ctx.derivatives, *ctx.gradients)
        return dx, dw, None, None


class _Gradient(torch.autograd.Function):
    """The first derivatives as a function of x, w and s, with its own derivative."""

    @staticmethod
    def forward(ctx, x, w, s, derivatives, dx, dw):
        ctx.derivatives, ctx.x_shape, ctx.w_dtype = derivatives, x.shape, w.dtype
        ctx.save_for_backward(s)
        return memory.scaled(dx, s), memory.scaled(dw, s).to(w.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, vx, vw):
        (s,) = ctx.saved_tensors
        x, w = ctx.derivatives.head.x, ctx.derivatives.head.w
        vx = torch.zeros_like(x) if vx is None else vx.reshape(x.shape).to(x.dtype)
        vw = torch.zeros_like(w) if vw is None else memory.cast(vw, w.dtype)
        hx, hw, inner = ctx.derivatives.second(vx, vw)
        hx, hw = hx.mul_(s.to(hx.dtype)), hw.mul_(s)
        return hx.view(ctx.x_shape), hw.to(ctx.w_dtype), inner, None, None, None
