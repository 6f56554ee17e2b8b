"""The language-model head fused with its loss: neither logits [tokens, vocab] nor per-sample head
gradients are ever whole.

    z = x w^T     loss = sum_nt weights_nt (logsumexp_v z_ntv - z_nt[target_nt])     b = weights (softmax(z) - onehot)
    dx = b w      wgrad = sum_n b_n^T x_n      dots[k,n] = <b_n^T x_n, V_k>

Everything is formed while one chunk of tokens' logits is in memory: loss, softmax in place, input
gradient, and weight gradient and dots by `wgrad_dots` on the chunk. The gradient is thus ready when
the loss is; the autograd op multiplies it by the incoming scalar. Against logits in memory this is
also the faster ordinary head on a CPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from inrun_kernels import memory, reference, shapes
from inrun_kernels.backend import accumulation_dtype, backend_for, operator
from inrun_kernels.layers import autocast
from inrun_kernels.wgrad_dots import packed_wgrad_dots

# One chunk's logits. Every chunk streams w, V and the total once, so that fewer tokens pay more for
# them; 160 MB are 833 tokens of GPT-2's vocabulary in float32. Two cores, d=256: b w runs at 173
# GFLOP/s with 512 tokens, 188 with 667. The GPU's size is a guess.
LOGITS_BYTES = 160 * 1024 * 1024
GPU_LOGITS_BYTES = 512 * 1024 * 1024
# Rows of logits whose softmax is taken at a time on a CPU: 8 rows of 50257 float32 are 1.6 MB and
# stay in L2.
SOFTMAX_BYTES = 1536 * 1024


class HeadDots(NamedTuple):
    """Losses of the tokens [n,t] (0 where ignored), input gradient [n,t,i], weight gradient [v,i],
    dots [k,n].
    """

    token_losses: Tensor
    dx: Tensor
    wgrad: Tensor
    dots: Tensor


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
    _check(x, w, targets, weights)
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
    """The scalar loss sum(weights * token losses), whose backward adds <g_n, V_k> to the gradient
    of `probe`.

    Arguments as `linear_cross_entropy_dots`; probe [k,n] zeros (the convention is in
    inrun_kernels.layers). The gradient is formed in the forward, where autograd is on; without it
    only the loss is. `weights` get no gradient.
    """
    _check(x, w, targets, weights)
    shapes.check_directions("linear_cross_entropy", V, tuple(w.shape), "[k,v,i]")
    shapes.check_probe("linear_cross_entropy", probe, V.shape[0], x.shape[0])
    x = autocast(x)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad or probe.requires_grad):
        return _linear_cross_entropy(x, w, targets, V, probe, weights, ignore_index)[0]
    return _loss(x, w, targets, weights, ignore_index)


def _check(x: Tensor, w: Tensor, targets: Tensor, weights: Tensor | None) -> None:
    op = "linear_cross_entropy"
    if x.ndim != 3 or w.ndim != 2 or x.shape[-1] != w.shape[1] or targets.shape != x.shape[:2]:
        raise ValueError(
            f"{op}: x {list(x.shape)} must be [n,t,i], w {list(w.shape)} [v,i], targets "
            f"{list(targets.shape)} [n,t]"
        )
    if targets.numel() == 0:
        raise ValueError(f"{op}: targets {list(targets.shape)} hold no token")
    if targets.dtype != torch.int64:
        raise TypeError(f"{op}: targets must be int64, not {targets.dtype}")
    if weights is not None and weights.shape != targets.shape:
        raise ValueError(
            f"{op}: weights {list(weights.shape)} must be [n,t] = {list(targets.shape)}"
        )
    shapes.check_floating(op, x, w)


def _tokens(
    x: Tensor, targets: Tensor, weights: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(counted [p] bool, targets [p] with 0 where ignored, weights [p], 0 where ignored), in the
    accumulation dtype.
    """
    targets = targets.reshape(-1)
    counted = targets != ignore_index
    wide = accumulation_dtype(x)
    if weights is None:
        factors = counted.to(wide) / counted.sum()
    else:
        factors = torch.where(counted, weights.reshape(-1).to(wide), 0)
    return counted, torch.where(counted, targets, 0), factors


def _chunk_tokens(x: Tensor, w: Tensor) -> int:
    """Tokens whose logits fit the buffer."""
    budget = GPU_LOGITS_BYTES if x.is_cuda else LOGITS_BYTES
    return max(1, budget // (w.shape[0] * x.itemsize))


def _chunks(n: int, t: int, limit: int) -> list[list[tuple[int, int]]]:
    """Spans of packed tokens by chunk: several whole samples to a chunk, or a long sample in
    pieces; `limit` tokens at most.
    """
    if t <= limit:
        group = limit // t
        return [
            [(s * t, s * t + t) for s in range(g, min(g + group, n))] for g in range(0, n, group)
        ]
    piece = -(-t // -(-t // limit))
    return [[(s * t + p, s * t + min(p + piece, t))] for s in range(n) for p in range(0, t, piece)]


@operator("head")
def _head(
    x: Tensor, w: Tensor, targets: Tensor, V: Tensor, weights: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, token losses, dx, wgrad, dots)."""
    backend = backend_for(x, w, V)
    counted, labels, factors = _tokens(x, targets, weights, ignore_index)
    n, t = targets.shape
    if backend == "reference":
        shape = (n, t)
        losses, dx, wgrad, dots = reference.linear_cross_entropy_dots(
            x, w, labels.view(shape), V, factors.view(shape)
        )
        losses = losses * counted.view(shape)
        return (losses.flatten() @ factors), losses, dx.to(x.dtype), wgrad, dots
    flat, compute = shapes.pack(x), memory.cast(w, x.dtype)
    wide = accumulation_dtype(x, w, V)
    losses = torch.empty(n * t, dtype=factors.dtype, device=x.device)
    dx = torch.empty_like(flat)
    wgrad = None
    dots = torch.zeros(V.shape[0], n, dtype=wide, device=x.device)
    chunks = _chunks(n, t, _chunk_tokens(x, w))
    # Kernels read rows 16 bytes at a time, if rows start on such a boundary: 50257 columns are kept
    # in rows of 50304.
    width = -(-w.shape[0] // 64) * 64 if backend == "triton" else w.shape[0]
    logits = memory.empty((max(c[-1][1] - c[0][0] for c in chunks), width), x.dtype, x.device)
    logits[:, w.shape[0] :] = 0
    logits = logits[:, : w.shape[0]]
    for spans in chunks:
        first, last = spans[0][0], spans[-1][1]
        chunk = slice(first, last)
        b = torch.mm(flat[chunk], compute.t(), out=logits[: last - first])
        _softmax_gradient(b, labels[chunk], factors[chunk], losses[chunk], backend)
        torch.mm(b, compute, out=dx[chunk])
        local = [(s - first, e - first) for s, e in spans]
        wgrad, part = packed_wgrad_dots(flat[chunk], b, V, local, wgrad, backend)
        sample = first // t
        dots[:, sample : sample + len(spans)] += part
    losses.mul_(counted)
    return losses @ factors, losses.view(n, t), dx.view(x.shape), wgrad, dots


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


def _softmax_gradient(
    z: Tensor, labels: Tensor, factors: Tensor, losses: Tensor, backend: str
) -> None:
    """Replace logits z [c,v] by factors * (softmax(z) - onehot(labels)); write the losses [c]."""
    if backend == "triton":
        from inrun_kernels.jit.cross_entropy import launch

        return launch(z, labels, factors, losses)
    rows = z.shape[0] if z.is_cuda else max(1, SOFTMAX_BYTES // (z.shape[1] * losses.itemsize))
    for start in range(0, z.shape[0], rows):
        block = slice(start, start + rows)
        logits, label = z[block], labels[block, None]
        p = logits.to(losses.dtype)
        losses[block] = _softmax_losses(p, label)
        p.mul_(factors[block, None])
        p.scatter_add_(1, label, -factors[block, None])
        if p is not logits:
            logits.copy_(p)
    return None


def _softmax_losses(z: Tensor, label: Tensor) -> Tensor:
    """Replace z [c,v] by its softmax and return the losses [c] of label [c,1].

    logsumexp = max z - log max p: max p is at least 1/v, so that the logarithm is as accurate as
    the softmax, where -log p[label] would underflow.
    """
    target, top = z.gather(1, label)[:, 0], z.amax(1)
    torch.softmax(z, 1, out=z)
    return top - z.amax(1).log_() - target


@operator("head_loss")
def _loss(
    x: Tensor, w: Tensor, targets: Tensor, weights: Tensor | None, ignore_index: int
) -> Tensor:
    """The loss alone, without gradients."""
    counted, labels, factors = _tokens(x, targets, weights, ignore_index)
    flat, compute = shapes.pack(x), memory.cast(w, x.dtype)
    losses = torch.empty(flat.shape[0], dtype=factors.dtype, device=x.device)
    step = _chunk_tokens(x, w)
    for start in range(0, flat.shape[0], step):
        chunk = slice(start, start + step)
        z = torch.mm(flat[chunk], compute.t()).to(losses.dtype)
        losses[chunk] = _softmax_losses(z, labels[chunk, None])
    return losses.mul_(counted) @ factors


@_loss.register_fake
def _(x, w, targets, weights, ignore_index):
    return x.new_empty((), dtype=accumulation_dtype(x))


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


def _save(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    # the other outputs have no gradient, and zeros in their place would be a table of the
    # vocabulary's size
    ctx.set_materialize_grads(False)


def _backward(ctx, gradient, *_):
    to_x, to_w, _, _, to_probe, _, _ = ctx.needs_input_grad
    saved = ctx.saved_tensors
    if not _is_one(gradient):
        saved = [memory.scaled(x, gradient) for x in saved]
    dx, wgrad, dots = (x if wanted else None for x, wanted in zip(saved, (to_x, to_w, to_probe)))
    return dx, wgrad, None, None, dots, None, None


def _is_one(gradient: Tensor) -> bool:
    """Whether the incoming gradient is known to be 1, as after loss.backward(): it saves a copy of
    the vocabulary's size.

    Looked at on the CPU only, where reading a number does not wait, and not while a graph is
    traced.
    """
    return type(gradient) is Tensor and gradient.device.type == "cpu" and gradient.item() == 1.0


_linear_cross_entropy.register_autograd(_backward, setup_context=_save)
