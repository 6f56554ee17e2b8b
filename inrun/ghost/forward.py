"""The universal route: one forward-mode pass, for any architecture and with no layer rules.

The value of a token's loss term along a direction V is ``<dL/dz_t, zdot_t>`` where z is what enters
the loss function (the logits) and zdot its tangent when the weights move along V. So one forward
pass with dual weights and the gradient of the loss alone give the dot product of every sample *and
every predicted token*; their sum over a sample's tokens is the sample's ``<g_i, V>``.
"""

from collections.abc import Callable, Mapping

import torch
import torch.autograd.forward_ad as fwad
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from inrun.ghost.arguments import rebuilder, tensors_of
from inrun.ghost.backward import dual_level
from inrun.ghost.errors import ONE_AT_A_TIME
from inrun.ghost.modes import Expand, Substitute
from inrun.rules.factors import by_sample, wide


class ForwardRouteError(RuntimeError):
    """The loss does not pass through a loss function of torch.nn.functional, so samples cannot be
    told apart, or an operation has no forward-mode derivative. Its message ends with a way out.
    """

    def __init__(self, what: str):
        super().__init__(f"{what}. Or say {ONE_AT_A_TIME}")


_LOSSES = {
    F.cross_entropy,
    F.nll_loss,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.kl_div,
    F.gaussian_nll_loss,
    F.poisson_nll_loss,
    F.soft_margin_loss,
    F.multi_margin_loss,
    F.multilabel_soft_margin_loss,
}


class _CutAtLoss(TorchFunctionMode):
    """Replaces the input of each loss function by a fresh leaf, keeping its tangent beside."""

    def __init__(self):
        super().__init__()
        self.cuts: list[tuple[Tensor, Tensor, Callable]] = []  # (leaf, tangent, loss function)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in _LOSSES:
            return func(*args, **kwargs)
        leaves = tensors_of(args, kwargs)
        for at, leaf in enumerate(leaves):
            primal, tangent = fwad.unpack_dual(leaf)
            if tangent is None:
                continue
            leaves[at] = primal.detach().requires_grad_()
            self.cuts.append((leaves[at], tangent.detach(), func))
        args, kwargs = rebuilder(args, kwargs)(leaves)
        return func(*args, **kwargs)


def token_dots(forward: Callable[[], Tensor], weights: Mapping[Tensor, Tensor], n: int) -> Tensor:
    """``<g_it, V>`` for every sample i and every row t of its loss.

    Args:
        forward: evaluates the loss of the micro-batch as the training step does, and returns the
            scalar that was backpropagated.
        weights: parameter -> direction V of its shape.
        n: samples of the micro-batch.

    Returns: [n, t] in float32 (float64 for float64 models); t = 1 where the loss has one row per
        sample. Rows whose label is ignored have 0.

    Raises:
        ForwardRouteError: the loss is not computed by a loss function of torch.nn.functional.
    """
    total: Tensor | None = None
    for gradient, tangent, func in _gradients_and_tangents(forward, weights):
        product = wide(gradient) * wide(tangent)
        if product.dim() > 1:
            # the class axis; the output's features
            product = product.sum(1 if func in (F.cross_entropy, F.nll_loss) else -1)
        rows = by_sample(product, n).reshape(n, -1)
        if total is not None and rows.shape != total.shape:
            raise ForwardRouteError(
                f"two loss functions with different rows, {tuple(total.shape)} and "
                f"{tuple(rows.shape)}, cannot be added token by token"
            )
        total = rows if total is None else total + rows
    assert total is not None, "there is at least one"
    return total


def _gradients_and_tangents(
    forward: Callable[[], Tensor], weights: Mapping[Tensor, Tensor]
) -> list[tuple[Tensor, Tensor, Callable]]:
    """For every call of a loss function: the loss's gradient in its input, the input's tangent,
    the function. At least one.
    """
    # fused attention has no forward-mode derivative
    with dual_level(), sdpa_kernel(SDPBackend.MATH):
        duals = {
            p: fwad.make_dual(p.detach(), V.to(p.dtype).expand_as(p).contiguous())
            for p, V in weights.items()
        }
        cutter = _CutAtLoss()
        with torch.enable_grad(), Substitute(duals), cutter, Expand():
            try:
                loss = forward()
            except NotImplementedError as error:
                raise ForwardRouteError(
                    f"an operation of the model has no forward-mode derivative in torch: {error}"
                ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ForwardRouteError(
                "forward() must return the scalar loss that the training step backpropagates"
            )
        if not cutter.cuts or fwad.unpack_dual(loss).tangent is not None:
            raise ForwardRouteError(
                "the loss does not pass (or not only) through a loss function of "
                "torch.nn.functional; compute it with F.cross_entropy, F.mse_loss, ... "
                "so that its rows can be told apart"
            )
        gradients = torch.autograd.grad(loss, [leaf for leaf, _, _ in cutter.cuts])
    return [
        (gradient, tangent, func) for (_, tangent, func), gradient in zip(cutter.cuts, gradients)
    ]
