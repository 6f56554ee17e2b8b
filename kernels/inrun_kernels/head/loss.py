"""The head's summed loss for plain training, gradients formed in the forward.

    z = x w^T     loss = sum_nt (logsumexp_v z_ntv - z_nt[target_nt])
    b = softmax(z) - onehot     dx = b w     wgrad = sum_n b_n^T x_n

They are formed chunk by chunk: a training step never holds [tokens, vocab]. That makes this the
fair baseline of the fused dots: what they cost is measured against a regular step that has this
head too.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from inrun_kernels import memory
from inrun_kernels.backend import accumulation_dtype, backend_for, operator
from inrun_kernels.head.chunks import (
    Chunk,
    HeadPass,
    add_product,
    check_head,
    save_gradients,
    unit_weights,
)
from inrun_kernels.layers import autocast


def cross_entropy_sum(x: Tensor, w: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Sum over tokens of the cross-entropy of ``x w^T`` against the targets, in nats.

    x [n,t,i] in any floating dtype (under autocast: in autocast's); w [v,i]; targets [n,t] int64,
    `ignore_index` where a token has none. Returns a scalar in float32 (float64 if an input is). The
    gradient is formed in the forward, where autograd is on. Differentiable once: for second
    derivatives and forward mode use `cross_entropy_sum_composite`. Raises ValueError for shapes
    that do not fit, TypeError for dtypes.
    """
    check_head("cross_entropy_sum", x, w, targets, None)
    x = autocast(x)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        return _cross_entropy_sum(x, w, targets, ignore_index)[0]
    return head_loss(x, w, targets, unit_weights(x, targets), ignore_index)


def cross_entropy_sum_composite(
    x: Tensor, w: Tensor, targets: Tensor, ignore_index: int = -100
) -> Tensor:
    """`cross_entropy_sum` in torch's own operations, differentiable as often as they are.

    Whole logits are in memory. Arguments as `cross_entropy_sum`.
    """
    logits = torch.nn.functional.linear(x, w)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=ignore_index, reduction="sum"
    )


@operator("head_loss")
def head_loss(
    x: Tensor, w: Tensor, targets: Tensor, weights: Tensor | None, ignore_index: int
) -> Tensor:
    """The weighted loss alone, without gradients; weights as `HeadPass` has them."""
    head = HeadPass(x, w, targets, weights, ignore_index, "torch")
    return head.token_losses() @ head.factors


@head_loss.register_fake
def _(x, w, targets, weights, ignore_index):
    return x.new_empty((), dtype=accumulation_dtype(x))


@operator("cross_entropy_sum")
def _cross_entropy_sum(
    x: Tensor, w: Tensor, targets: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, dx, wgrad) at an incoming gradient of 1."""
    head = HeadPass(x, w, targets, unit_weights(x, targets), ignore_index, backend_for(x, w))
    wgrad = memory.empty(w.shape, accumulation_dtype(x, w), x.device)
    dx = first_derivatives(head.gradients(), head, wgrad)
    return head.losses.mul_(head.counted).sum(), dx.view(x.shape), wgrad.to(w.dtype)


def first_derivatives(chunks: Iterable[Chunk], head: HeadPass, wgrad: Tensor) -> Tensor:
    """b w [p,i] of all chunks; b^T x is written to `wgrad` [v,i]."""
    dx = torch.empty_like(head.x)
    for chunk in chunks:
        torch.mm(chunk.b, head.w, out=dx[chunk.tokens])
        add_product(wgrad, chunk.b, chunk.x, fresh=chunk.tokens.start == 0)
    return dx


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


_cross_entropy_sum.register_autograd(_backward, setup_context=save_gradients)


CROSS_ENTROPY_SUM = torch.ops.inrun.cross_entropy_sum.default
"""The operation as a torch-function mode sees it: (x, w, targets, ignore_index) -> (loss, dx,
wgrad)."""
CROSS_ENTROPY_LOSS = torch.ops.inrun.head_loss.default
"""The same without gradients: (x, w, targets, weights, ignore_index) -> loss."""
