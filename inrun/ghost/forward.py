"""The universal route: one forward-mode pass, for any architecture and with no layer rules.

The value of a token's loss term along a direction V is ``<dL/dz_t, zdot_t>`` where z is what enters
the loss function (the logits) and zdot its tangent when the weights move along V. So one forward
pass with dual weights and the gradient of the loss alone give the dot product of every sample *and
every predicted token*; their sum over a sample's tokens is the sample's ``<g_i, V>``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.autograd.forward_ad as fwad
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from inrun.ghost.arguments import rebuilder, tensors_of
from inrun.ghost.backward import dual_level
from inrun.ghost.errors import ONE_AT_A_TIME
from inrun.ghost.layout import Layouts
from inrun.ghost.modes import Expand, Substitute
from inrun.rules.factors import SampleAxisError, by_sample, wide
from inrun.rules.layout import SHARED, Layout


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


@dataclass
class _Cut:
    """One call of a loss function: its input as a fresh leaf, the tangent that it came with, whose
    its rows are, and the function.
    """

    leaf: Tensor
    tangent: Tensor
    layout: Layout
    func: Callable


class _CutAtLoss(TorchFunctionMode):
    """Replaces the input of each loss function by a fresh leaf, keeping its tangent beside, and
    follows the owners of rows up to there.
    """

    def __init__(self, layouts: Layouts):
        super().__init__()
        self.layouts = layouts
        self.cuts: list[_Cut] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in _LOSSES:
            return self.layouts.run(func, args, kwargs)
        leaves = tensors_of(args, kwargs)
        for at, leaf in enumerate(leaves):
            primal, tangent = fwad.unpack_dual(leaf)
            if tangent is None:
                continue
            leaves[at] = primal.detach().requires_grad_()
            self.cuts.append(_Cut(leaves[at], tangent.detach(), self.layouts.of(leaf), func))
        args, kwargs = rebuilder(args, kwargs)(leaves)
        return func(*args, **kwargs)


def token_dots(
    forward: Callable[[], Tensor],
    weights: Mapping[Tensor, Tensor],
    n: int,
    rows: Tensor | None = None,
    constants: Iterable[Tensor] = (),
) -> Tensor:
    """``<g_it, V>`` for every sample i and every row t of its loss.

    Args:
        forward: evaluates the loss of the micro-batch as the training step does, and returns the
            scalar that was backpropagated.
        weights: parameter -> direction V of its shape.
        n: samples of the micro-batch.
        rows: the owner 0..n-1 of each row that goes in [r], where that is not the samples in order.
        constants: tensors without samples.

    Returns: [n, t] in float32 (float64 for float64 models); t = 1 where the loss has one row per
        sample. Rows whose label is ignored have 0, and so has what a sample's rows fall short of
        the longest.

    Raises:
        ForwardRouteError: the loss is not computed by a loss function of torch.nn.functional.
        SampleAxisError: it is not known whose a row of the loss is.
    """
    layouts = Layouts(n, rows)
    for tensor in (*weights, *constants):
        layouts.put(tensor, SHARED)
    total: Tensor | None = None
    for cut, gradient in _cuts_and_gradients(forward, weights, layouts):
        rows = _by_sample(wide(gradient) * wide(cut.tangent), cut, n)
        if total is not None and rows.shape != total.shape:
            raise ForwardRouteError(
                f"two loss functions with different rows, {tuple(total.shape)} and "
                f"{tuple(rows.shape)}, cannot be added token by token"
            )
        total = rows if total is None else total + rows
    assert total is not None, "there is at least one"
    return total


def _by_sample(product: Tensor, cut: _Cut, n: int) -> Tensor:
    """Each sample's rows of gradient times tangent: [n, t], shorter ones with zeros at the end."""
    axis, owners = cut.layout.axis, cut.layout.owners
    if product.dim() > 1:
        # the class axis; the output's features
        summed = 1 if cut.func in (F.cross_entropy, F.nll_loss) else product.dim() - 1
        if axis == summed:
            raise _whose(product, n)
        axis = axis - 1 if axis is not None and axis > summed else axis
        product = product.sum(summed)
    if n == 1:
        return product.reshape(1, -1)
    if owners is None and not (product.dim() and product.shape[0] == n):
        raise _whose(product, n)
    if owners is None or cut.layout.plain:
        return by_sample(product, n).reshape(n, -1)
    own = product[None] if axis is None else product.movedim(axis, 0)
    order, offsets = owners.sorted(product.device)
    parts = [own.index_select(0, order[a:b]).flatten() for a, b in pairwise(offsets)]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def _whose(tensor: Tensor, n: int) -> SampleAxisError:
    return SampleAxisError(
        f"the loss has rows {tuple(tensor.shape)}, and it is not known which of them belong to "
        f"which of the {n} samples. Keep the samples along axis 0, or say whose each row of the "
        "model's input is: attr.batch(ids, rows=<a sample 0..n-1 per row>)"
    )


def _cuts_and_gradients(
    forward: Callable[[], Tensor], weights: Mapping[Tensor, Tensor], layouts: Layouts
) -> list[tuple[_Cut, Tensor]]:
    """Every call of a loss function, at least one, with the loss's gradient in its input."""
    # fused attention has no forward-mode derivative
    with dual_level(), sdpa_kernel(SDPBackend.MATH):
        duals = {
            p: fwad.make_dual(p.detach(), V.to(p.dtype).expand_as(p).contiguous())
            for p, V in weights.items()
        }
        cutter = _CutAtLoss(layouts)
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
        gradients = torch.autograd.grad(loss, [cut.leaf for cut in cutter.cuts])
    return list(zip(cutter.cuts, gradients))
