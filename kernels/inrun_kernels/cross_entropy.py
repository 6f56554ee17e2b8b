"""The language-model head with its loss for plain training: the same chunked head as
`linear_cross_entropy_dots`, without directions.

    z = x w^T     loss = sum_nt (logsumexp_v z_ntv - z_nt[target_nt])     dx = b w     wgrad = sum_n b_n^T x_n     b = softmax(z) - onehot

Loss, input gradient and weight gradient are formed while one chunk of tokens' logits is in memory,
so that a training step never holds [tokens, vocab]. That makes it the fair baseline of the fused
dots: what they cost is measured against a regular step that has this head too.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from inrun_kernels import memory, shapes
from inrun_kernels.backend import accumulation_dtype, backend_for, operator
from inrun_kernels.layers import autocast
from inrun_kernels.linear_cross_entropy import (
    _check,
    _chunk_tokens,
    _chunks,
    _loss,
    _save,
    _softmax_gradient,
    _tokens,
)
from inrun_kernels.wgrad_dots import outer_dots


def cross_entropy_sum(x: Tensor, w: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Sum over tokens of the cross-entropy of ``x w^T`` against the targets, in nats.

    x [n,t,i] in any floating dtype (under autocast: in autocast's); w [v,i]; targets [n,t] int64,
    `ignore_index` where a token has none. Returns a scalar in float32 (float64 if an input is). The
    gradient is formed in the forward, where autograd is on. Differentiable once: for second
    derivatives and forward mode use `cross_entropy_sum_composite`. Raises ValueError for shapes
    that do not fit, TypeError for dtypes.
    """
    _check(x, w, targets, None)
    x = autocast(x)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        return _cross_entropy_sum(x, w, targets, ignore_index)[0]
    return _loss(x, w, targets, torch.ones_like(targets, dtype=accumulation_dtype(x)), ignore_index)


def cross_entropy_sum_composite(
    x: Tensor, w: Tensor, targets: Tensor, ignore_index: int = -100
) -> Tensor:
    """The same loss in torch's own operations, with whole logits: differentiable as often as they
    are.
    """
    logits = torch.nn.functional.linear(x, w)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=ignore_index, reduction="sum"
    )


def cross_entropy_sum_dots(
    x: Tensor, w: Tensor, targets: Tensor, V: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """``<g_n, V_k>`` [k,n] of the head's weight for `cross_entropy_sum`, V [k,v,i]; logits are
    formed again, chunk by chunk.
    """
    shapes.check_directions("cross_entropy_sum_dots", V, tuple(w.shape), "[k,v,i]")
    dots = torch.zeros(
        V.shape[0], targets.shape[0], dtype=accumulation_dtype(x, w, V), device=x.device
    )
    for spans, a, b, _ in _pieces(x, w, targets, ignore_index):
        for sample, rows, _ in spans.parts:
            dots[:, sample] += outer_dots(a[None, rows], b[None, rows], V)[:, 0]
    return dots


def cross_entropy_sum_per_sample(
    x: Tensor, w: Tensor, targets: Tensor, *, ignore_index: int = -100, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, input gradient [n,t,i], the head's per-sample gradients [n,v,i] in the dtype of x) of
    `cross_entropy_sum`.
    """
    g = memory.empty((targets.shape[0], *w.shape), x.dtype, x.device) if out is None else out
    dx = x.new_empty(x.shape)  # contiguous, whatever x is
    loss = torch.zeros((), dtype=accumulation_dtype(x), device=x.device)
    compute = memory.cast(w, x.dtype)
    for spans, a, b, losses in _pieces(x, compute, targets, ignore_index):
        torch.mm(b, compute, out=dx.view(-1, x.shape[-1])[spans.tokens])
        for sample, rows, fresh in spans.parts:
            torch.mm(b[rows].t(), a[rows], out=g[sample]) if fresh else g[sample].addmm_(
                b[rows].t(), a[rows]
            )
        loss += losses
    return loss, dx, g


class _Spans(NamedTuple):
    """A piece of the packed tokens, and for each sample in it (sample, its rows of the piece,
    whether they are the sample's first).
    """

    tokens: slice
    parts: list[tuple[int, slice, bool]]


def _pieces(
    x: Tensor, w: Tensor, targets: Tensor, ignore_index: int
) -> Iterator[tuple[_Spans, Tensor, Tensor, Tensor]]:
    """(spans, inputs [c,i], logits' gradient [c,v], summed loss): several whole samples or a part
    of one, as many tokens as the buffer takes.
    """
    backend = backend_for(x, w)
    n, t = targets.shape
    flat, compute = shapes.pack(x), memory.cast(w, x.dtype)
    counted, labels, factors = _tokens(
        x, targets, torch.ones_like(targets, dtype=accumulation_dtype(x)), ignore_index
    )
    chunks = _chunks(n, t, _chunk_tokens(x, w))
    buffer = memory.empty((max(c[-1][1] - c[0][0] for c in chunks), w.shape[0]), x.dtype, x.device)
    for chunk in chunks:
        first, last = chunk[0][0], chunk[-1][1]
        tokens = slice(first, last)
        a = flat[tokens]
        b = torch.mm(a, compute.t(), out=buffer[: last - first])
        losses = factors.new_empty(last - first)
        _softmax_gradient(
            b,
            labels[tokens],
            factors[tokens],
            losses,
            "torch" if backend == "reference" else backend,
        )
        parts = [
            (start // t, slice(start - first, end - first), start % t == 0) for start, end in chunk
        ]
        yield _Spans(tokens, parts), a, b, (losses * counted[tokens]).sum()


@operator("cross_entropy_sum")
def _cross_entropy_sum(
    x: Tensor, w: Tensor, targets: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, dx, wgrad) at an incoming gradient of 1."""
    backend = backend_for(x, w)
    counted, labels, factors = _tokens(
        x, targets, torch.ones_like(targets, dtype=accumulation_dtype(x)), ignore_index
    )
    flat, compute = shapes.pack(x), memory.cast(w, x.dtype)
    losses = torch.empty(flat.shape[0], dtype=factors.dtype, device=x.device)
    dx = torch.empty_like(flat)
    wgrad = memory.empty(w.shape, accumulation_dtype(x, w), x.device)
    rows = min(flat.shape[0], _chunk_tokens(x, w))
    width = -(-w.shape[0] // 64) * 64 if backend == "triton" else w.shape[0]
    logits = memory.empty((rows, width), x.dtype, x.device)[:, : w.shape[0]]
    for start in range(0, flat.shape[0], rows):
        chunk = slice(start, min(start + rows, flat.shape[0]))
        b = torch.mm(flat[chunk], compute.t(), out=logits[: chunk.stop - start])
        _softmax_gradient(
            b,
            labels[chunk],
            factors[chunk],
            losses[chunk],
            "torch" if backend == "reference" else backend,
        )
        torch.mm(b, compute, out=dx[chunk])
        add_product(wgrad, b, flat[chunk], fresh=start == 0)
    losses.mul_(counted)
    return losses.sum(), dx.view(x.shape), wgrad.to(w.dtype)


def add_product(total: Tensor, left: Tensor, right: Tensor, fresh: bool) -> None:
    """total += left^T right, or = if it is `fresh`; products of half precision are rounded once,
    then added in the total's dtype.
    """
    if total.dtype != left.dtype:
        product = torch.mm(left.t(), right)
        total.copy_(product) if fresh else total.add_(product)
    elif fresh:
        torch.mm(left.t(), right, out=total)
    else:
        total.addmm_(left.t(), right)


@_cross_entropy_sum.register_fake
def _(x, w, targets, ignore_index):
    return x.new_empty((), dtype=accumulation_dtype(x)), torch.empty_like(x), torch.empty_like(w)


def _backward(ctx, gradient, *_):
    to_x, to_w, _, _ = ctx.needs_input_grad
    dx, wgrad = (
        memory.scaled(saved, gradient) if wanted else None
        for saved, wanted in zip(ctx.saved_tensors, (to_x, to_w))
    )
    return dx, wgrad, None, None


_cross_entropy_sum.register_autograd(_backward, setup_context=_save)


#: the operations as a torch-function mode sees them: with gradients, (x, w, targets, ignore_index)
#: -> (loss, dx, wgrad); without, (x, w, targets, weights, ignore_index) -> loss
CROSS_ENTROPY_SUM = _cross_entropy_sum._opoverload
CROSS_ENTROPY_LOSS = _loss._opoverload
