"""The language-model head with its loss, differentiable twice: Hessian-vector products without
whole logits in memory.

    z = x w^T     b = softmax(z) - onehot     first derivatives, at an incoming gradient s:  dx = s b w,  dw = s b^T x

For cotangents vx of dx and vw of dw (a direction in the space of the inputs), with the logits'
tangent z' = vx w^T + x vw^T and b' = p o (z' - <p, z'>), p = softmax(z):

    d<dx, vx> + <dw, vw>  /  dx = s (b' w + b vw)      / dw = s (b'^T x + b^T vx)      / ds = <b, z'>

Six products of the head's size beside the three of the first derivatives; written as torch
operations they are as many, with a dozen passes over [tokens, vocab] between them. b is kept from
the first derivatives where it fits the buffer, and formed again chunk by chunk where it does not.
"""

import torch
from torch import Tensor

from inrun_kernels import memory
from inrun_kernels.backend import accumulation_dtype
from inrun_kernels.cross_entropy import add_product
from inrun_kernels.layers import autocast
from inrun_kernels.linear_cross_entropy import (
    SOFTMAX_BYTES,
    _check,
    _chunk_tokens,
    _softmax_gradient,
    _tokens,
)


def cross_entropy_sum_twice(
    x: Tensor, w: Tensor, targets: Tensor, ignore_index: int = -100
) -> Tensor:
    """`inrun_kernels.cross_entropy_sum` that can be differentiated twice: x [n,t,i], w [v,i],
    targets [n,t] int64; a scalar in float32 (float64 if an input is).
    """
    _check(x, w, targets, None)
    return _Loss.apply(autocast(x), w, targets, ignore_index)


class _Chunks:
    """The head's tokens in chunks whose logits fit the buffer: x [p,i], w [v,i], both in the dtype
    of x.
    """

    def __init__(self, x: Tensor, w: Tensor, targets: Tensor, ignore_index: int):
        ones = torch.ones_like(targets, dtype=accumulation_dtype(x))
        self.counted, self.labels, self.factors = _tokens(x, targets, ones, ignore_index)
        self.x, self.w = x.reshape(-1, x.shape[-1]), memory.cast(w, x.dtype)
        self.rows = min(len(self.x), _chunk_tokens(x, w))
        self.kept: Tensor | None = None  # b of all tokens, if they are one chunk

    def __iter__(self):
        return (
            slice(start, min(start + self.rows, len(self.x)))
            for start in range(0, len(self.x), self.rows)
        )

    def b(self, chunk: slice, losses: Tensor) -> Tensor:
        """softmax(z) - onehot of a chunk, 0 where there is no target; its losses are written to
        `losses` [p].
        """
        if self.kept is not None:
            return self.kept
        z = memory.empty((chunk.stop - chunk.start, self.w.shape[0]), self.x.dtype, self.x.device)
        torch.mm(self.x[chunk], self.w.t(), out=z)
        _softmax_gradient(z, self.labels[chunk], self.factors[chunk], losses[chunk], "torch")
        if self.rows == len(self.x):
            self.kept = z
        return z

    def first(self) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, b w [p,i], b^T x [v,i])."""
        losses = self.factors.new_empty(len(self.x))
        dx = torch.empty_like(self.x)
        dw = memory.empty(self.w.shape, accumulation_dtype(self.x), self.x.device)
        for chunk in self:
            b = self.b(chunk, losses)
            torch.mm(b, self.w, out=dx[chunk])
            add_product(dw, b, self.x[chunk], fresh=chunk.start == 0)
        return losses.mul_(self.counted).sum(), dx, dw

    def second(self, vx: Tensor, vw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b' w + b vw [p,i], b'^T x + b^T vx [v,i], <b, z'>) at s = 1."""
        wide = accumulation_dtype(self.x)
        losses = self.factors.new_empty(len(self.x))
        hx = torch.empty_like(self.x)
        hw = memory.empty(self.w.shape, wide, self.x.device)
        inner = self.factors.new_zeros(())
        for chunk in self:
            b = self.b(chunk, losses)
            tangent = memory.empty(b.shape, b.dtype, b.device)
            torch.mm(vx[chunk], self.w.t(), out=tangent)
            tangent.addmm_(self.x[chunk], vw.t())
            inner += _softmax_tangent(b, tangent, self.labels[chunk], self.counted[chunk], wide)
            torch.mm(tangent, self.w, out=hx[chunk])
            hx[chunk].addmm_(b, vw)
            add_product(hw, tangent, self.x[chunk], fresh=chunk.start == 0)
            add_product(hw, b, vx[chunk], fresh=False)
        return hx, hw, inner


def _softmax_tangent(
    b: Tensor, tangent: Tensor, labels: Tensor, counted: Tensor, wide: torch.dtype
) -> Tensor:
    """Replace z' [c,v] by b' = p o (z' - <p, z'>), 0 where not counted; returns <b, z'>. Rows that
    fit a core's cache at a time.
    """
    inner = torch.zeros((), dtype=wide, device=b.device)
    rows = b.shape[0] if b.is_cuda else max(1, SOFTMAX_BYTES // (2 * b.shape[1] * wide.itemsize))
    for start in range(0, b.shape[0], rows):
        block = slice(start, start + rows)
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
        chunks = _Chunks(x.detach(), w.detach(), targets, ignore_index)
        loss, dx, dw = chunks.first()
        ctx.save_for_backward(x, w)
        ctx.chunks, ctx.gradients = chunks, (dx.view(x.shape), dw)
        return loss

    @staticmethod
    def backward(ctx, s):
        x, w = ctx.saved_tensors
        dx, dw = _Gradient.apply(x, w, s, ctx.chunks, *ctx.gradients)
        return dx, dw, None, None


class _Gradient(torch.autograd.Function):
    """The first derivatives as a function of x, w and s, with its own derivative."""

    @staticmethod
    def forward(ctx, x, w, s, chunks, dx, dw):
        ctx.chunks, ctx.x_shape, ctx.w_dtype = chunks, x.shape, w.dtype
        ctx.save_for_backward(s)
        return memory.scaled(dx, s), memory.scaled(dw, s).to(w.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, vx, vw):
        (s,) = ctx.saved_tensors
        chunks = ctx.chunks
        vx = (
            torch.zeros_like(chunks.x)
            if vx is None
            else vx.reshape(chunks.x.shape).to(chunks.x.dtype)
        )
        vw = torch.zeros_like(chunks.w) if vw is None else memory.cast(vw, chunks.w.dtype)
        hx, hw, inner = chunks.second(vx, vw)
        return (
            hx.mul_(s.to(hx.dtype)).view(ctx.x_shape),
            hw.mul_(s).to(ctx.w_dtype),
            inner,
            None,
            None,
            None,
        )
