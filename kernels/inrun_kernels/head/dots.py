"""The head's per-sample gradients and their dots; neither is ever whole beside the logits.

    z = x w^T     loss = sum_nt weights_nt (logsumexp_v z_ntv - z_nt[target_nt])
    b = weights (softmax(z) - onehot)     dx = b w     wgrad = sum_n b_n^T x_n
    dots[k,n] = <b_n^T x_n, V_k>

Everything is formed while one chunk of logits is in memory: loss, softmax in place, input gradient,
and weight gradient and dots by `wgrad_dots` on the chunk. The gradient is thus ready when the loss
is; the autograd operation multiplies it by the incoming scalar.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from inrun_kernels import memory, reference, shapes
from inrun_kernels.backend import accumulation_dtype, backend_for, operator
from inrun_kernels.head.chunks import (
    HeadPass,
    check_head,
    packed_targets,
    save_gradients,
    unit_weights,
)
from inrun_kernels.head.loss import head_loss
from inrun_kernels.layers import autocast
from inrun_kernels.wgrad_dots import outer_dots, packed_wgrad_dots


class HeadDots(NamedTuple):
    """What `linear_cross_entropy_dots` returns."""

    token_losses: Tensor
    """Losses of the tokens [n,t], 0 where ignored."""
    dx: Tensor
    """Input gradient [n,t,i]."""
    wgrad: Tensor
    """Weight gradient [v,i]."""
    dots: Tensor
    """<g_n, V_k> [k,n]."""


def linear_cross_entropy_dots(
    x: Tensor,
    w: Tensor,
    targets: Tensor,
    V: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = -100,
) -> HeadDots:
    """Losses of a head z = x w^T, and gradients and dots of the weighted sum of these losses.

    x [n,t,i] in any floating dtype, products are taken in it; w [v,i]; targets [n,t] int64,
    `ignore_index` where a token has no target; V [k,v,i]; weights [n,t], None for the mean over the
    tokens that have a target. Losses, weight gradient and dots in float32 (float64 if an input is),
    dx in the dtype of x; units: nats. Raises ValueError for shapes that do not fit, TypeError for
    dtypes, RuntimeError for a target outside the vocabulary (on a GPU its loss is NaN).
    """
    check_head("linear_cross_entropy_dots", x, w, targets, weights)
    shapes.check_directions("linear_cross_entropy_dots", V, tuple(w.shape), "[k,v,i]")
    _, *rest = _head(x, w, targets, V, weights, ignore_index)
    return HeadDots(*rest)


def linear_cross_entropy(
    x: Tensor,
    w: Tensor,
    targets: Tensor,
    V: Tensor,
    probe: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """The weighted loss, whose backward adds <g_n, V_k> to the gradient of `probe`.

    sum(weights * token losses). Arguments as `linear_cross_entropy_dots`; probe [k,n] zeros (the
    convention is in inrun_kernels.layers). The gradient is formed in the forward, where autograd is
    on; without it only the loss is. `weights` get no gradient.
    """
    check_head("linear_cross_entropy", x, w, targets, weights)
    shapes.check_directions("linear_cross_entropy", V, tuple(w.shape), "[k,v,i]")
    shapes.check_probe("linear_cross_entropy", probe, V.shape[0], x.shape[0])
    x = autocast(x)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad or probe.requires_grad):
        return _linear_cross_entropy(x, w, targets, V, probe, weights, ignore_index)[0]
    return head_loss(x, w, targets, weights, ignore_index)


def cross_entropy_sum_dots(
    x: Tensor, w: Tensor, targets: Tensor, V: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """``<g_n, V_k>`` [k,n] of the head's weight for `cross_entropy_sum`, V [k,v,i].

    Logits are formed again, chunk by chunk.
    """
    shapes.check_directions("cross_entropy_sum_dots", V, tuple(w.shape), "[k,v,i]")
    wide = accumulation_dtype(x, w, V)
    dots = torch.zeros(V.shape[0], targets.shape[0], dtype=wide, device=x.device)
    head = HeadPass(x, w, targets, unit_weights(x, targets), ignore_index, backend_for(x, w))
    for chunk in head.gradients(by_sample=True):
        for sample, rows, _ in chunk.parts:
            dots[:, sample] += outer_dots(chunk.x[None, rows], chunk.b[None, rows], V)[:, 0]
    return dots


def cross_entropy_sum_per_sample(
    x: Tensor, w: Tensor, targets: Tensor, *, ignore_index: int = -100, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, dx [n,t,i], per-sample gradients [n,v,i] of the weight) of `cross_entropy_sum`.

    Both gradients in the dtype of x; the per-sample ones are written to `out` where it is given.
    """
    g = memory.empty((targets.shape[0], *w.shape), x.dtype, x.device) if out is None else out
    head = HeadPass(x, w, targets, unit_weights(x, targets), ignore_index, backend_for(x, w))
    dx = torch.empty_like(head.x)
    loss = head.losses.new_zeros(())
    for chunk in head.gradients(by_sample=True):
        torch.mm(chunk.b, head.w, out=dx[chunk.tokens])
        for sample, rows, fresh in chunk.parts:
            left, right = chunk.b[rows].t(), chunk.x[rows]
            torch.mm(left, right, out=g[sample]) if fresh else g[sample].addmm_(left, right)
        loss += (head.losses[chunk.tokens] * head.counted[chunk.tokens]).sum()
    return loss, dx.view(x.shape), g


@operator("head")
def _head(
    x: Tensor, w: Tensor, targets: Tensor, V: Tensor, weights: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, token losses, dx, wgrad, dots)."""
    backend = backend_for(x, w, V)
    if backend == "reference":
        return _head_by_formula(x, w, targets, V, weights, ignore_index)
    head = HeadPass(x, w, targets, weights, ignore_index, backend)
    dx = torch.empty_like(head.x)
    wgrad: Tensor | None = None
    dots = torch.zeros(V.shape[0], x.shape[0], dtype=accumulation_dtype(x, w, V), device=x.device)
    for chunk in head.gradients(by_sample=True):
        torch.mm(chunk.b, head.w, out=dx[chunk.tokens])
        spans = [(rows.start, rows.stop) for _, rows, _ in chunk.parts]
        wgrad, part = packed_wgrad_dots(chunk.x, chunk.b, V, spans, wgrad, backend)
        first = chunk.parts[0].sample
        dots[:, first : first + len(spans)] += part
    assert wgrad is not None, "check_head: there is a token"
    losses = head.losses.mul_(head.counted)
    return losses @ head.factors, losses.view(targets.shape), dx.view(x.shape), wgrad, dots


def _head_by_formula(
    x: Tensor, w: Tensor, targets: Tensor, V: Tensor, weights: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`_head` by `inrun_kernels.reference`."""
    counted, labels, factors = (
        y.view(targets.shape) for y in packed_targets(x, targets, weights, ignore_index)
    )
    losses, dx, wgrad, dots = reference.linear_cross_entropy_dots(x, w, labels, V, factors)
    losses = losses * counted
    return losses.flatten() @ factors.flatten(), losses, dx.to(x.dtype), wgrad, dots


@_head.register_fake
def _(x, w, targets, V, weights, ignore_index):
    wide, narrow = accumulation_dtype(x, w, V), accumulation_dtype(x)
    return (
        x.new_empty((), dtype=narrow),
        x.new_empty(targets.shape, dtype=narrow),
        x.new_empty(x.shape),
        x.new_empty(w.shape, dtype=wide),
        x.new_empty((V.shape[0], x.shape[0]), dtype=wide),
    )


@operator("linear_cross_entropy")
def _linear_cross_entropy(
    x: Tensor,
    w: Tensor,
    targets: Tensor,
    V: Tensor,
    probe: Tensor,
    weights: Tensor | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, dx, wgrad, dots), all at an incoming gradient of 1."""
    loss, _, dx, wgrad, dots = _head(x, w, targets, V, weights, ignore_index)
    return loss, dx, wgrad.to(w.dtype), dots.to(probe.dtype)


@_linear_cross_entropy.register_fake
def _(x, w, targets, V, probe, weights, ignore_index):
    loss = x.new_empty((), dtype=accumulation_dtype(x))
    return loss, torch.empty_like(x), torch.empty_like(w), torch.empty_like(probe)


def _backward(ctx, gradient, *_):
    to_x, to_w, _, _, to_probe, _, _ = ctx.needs_input_grad
    saved = ctx.saved_tensors
    if not _is_one(gradient):
        saved = [memory.scaled(x, gradient) for x in saved]
    dx, wgrad, dots = (x if wanted else None for x, wanted in zip(saved, (to_x, to_w, to_probe)))
    return dx, wgrad, None, None, dots, None, None


def _is_one(gradient: Tensor) -> bool:
    """Whether the incoming gradient is known to be 1, as after loss.backward().

    It saves a copy of the vocabulary's size. Looked at on the CPU only, where reading a number does
    not wait, and not while a graph is traced.
    """
    return type(gradient) is Tensor and gradient.device.type == "cpu" and gradient.item() == 1.0


_linear_cross_entropy.register_autograd(_backward, setup_context=save_gradients)
