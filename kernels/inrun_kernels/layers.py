"""A linear layer whose backward also yields dots; the convention shared by all such layers.

StreamingDots leave the graph as the gradient of a probe, an input of zeros [k,n] that the forward
ignores. Autograd then adds the dots of all layers (and of all uses of a shared weight) into
`probe.grad`, with no side channel: the same under torch.compile, activation checkpointing and
autocast. One probe per layer keeps layers apart.

    probe = torch.zeros(k, n, requires_grad=True)
    y = inrun_kernels.linear(x, weight, bias, V, probe, bias_V=V_bias)      # V [k,o,i]: directions, known before the backward
    ...; loss.backward()                                              # probe.grad [k,n] = sum over layers of <g_n, V_k>

A layer computes in the dtype of x (under autocast: in autocast's), its weight gradient is summed in
float32 and returned in the weight's dtype. A weight that does not require a gradient still yields
dots, and a probe that does not require one leaves the ordinary backward. Double backward is not
defined and raises.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from inrun_kernels import shapes
from inrun_kernels.backend import operator
from inrun_kernels.wgrad_dots import _outer_dots, _wgrad_dots


def linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    V: Tensor,
    probe: Tensor,
    *,
    bias_V: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """y = x w^T + bias, whose backward adds <g_n, V_k> (+ <g_n of the bias, bias_V_k>) to the
    gradient of `probe`.

    x [n,...,i]; w [o,i]; bias [o] or None; V [k,o,i]; probe [k,n] zeros; bias_V [k,o], or None to
    leave the bias out of the dots. Packed samples: x [p,i] with offsets [n+1]. Returns [n,...,o] in
    the dtype of x (or autocast's). Raises ValueError for shapes that do not fit, TypeError for
    integer tensors.
    """
    shapes.check_directions("linear", V, tuple(w.shape), "[k,o,i]")
    if x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear: x {list(x.shape)} must end in the weight's inputs, {w.shape[1]}")
    if bias_V is not None:
        shapes.check_directions("linear: bias_V", bias_V, (w.shape[0],), "[k,o]")
        if bias is None:
            raise ValueError("linear: bias_V is given for a layer without a bias; pass bias_V=None")
    shapes.check_probe(
        "linear", probe, V.shape[0], x.shape[0] if offsets is None else offsets.shape[0] - 1
    )
    shapes.check_floating("linear", x, w, V)
    return _linear(autocast(x), w, bias, V, bias_V, probe, offsets)


def autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast prescribes for products on its device; as it is without
    autocast, or in float64.
    """
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


@operator("linear")
def _linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    V: Tensor,
    bias_V: Tensor | None,
    probe: Tensor,
    offsets: Tensor | None,
) -> Tensor:
    return torch_linear(x, w.to(x.dtype), None if bias is None else bias.to(x.dtype))


@_linear.register_fake
def _(x, w, bias, V, bias_V, probe, offsets):
    return x.new_empty((*x.shape[:-1], w.shape[0]))


def _save(ctx, inputs, output):
    x, w, bias, V, bias_V, probe, offsets = inputs
    ctx.save_for_backward(x, w, V, bias_V, offsets)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.probe_dtype = probe.dtype


def _backward(ctx, gy):
    x, w, V, bias_V, offsets = ctx.saved_tensors
    to_x, to_w, to_bias, _, _, to_probe, _ = ctx.needs_input_grad
    gx = gw = gbias = dots = None
    if to_x:
        gx = gy @ w.to(gy.dtype)
    a, b = (x, gy) if offsets is not None else (_samples(x), _samples(gy))
    if to_w and to_probe:
        gw, dots = _wgrad_dots(a, b, V, offsets)
    elif to_probe:
        dots = _outer_dots(a, b, V, offsets)
    elif to_w:
        gw = b.flatten(0, -2).t() @ a.flatten(0, -2)
    if to_bias or (to_probe and bias_V is not None):
        sums = _bias_sums(b, offsets, V.dtype)
        gbias = sums.sum(0).to(ctx.bias_dtype) if to_bias else None
        if to_probe and bias_V is not None:
            dots = dots + _outer_dots(
                sums.new_ones(sums.shape[0], 1, 1), sums[:, None], bias_V[..., None], None
            )
    return (
        gx,
        gw if gw is None else gw.to(w.dtype),
        gbias,
        None,
        None,
        dots if dots is None else dots.to(ctx.probe_dtype),
        None,
    )


_linear.register_autograd(_backward, setup_context=_save)


def _samples(x: Tensor) -> Tensor:
    """[n,...,d] as [n,t,d]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _bias_sums(b: Tensor, offsets: Tensor | None, V_dtype: torch.dtype) -> Tensor:
    """Per-sample sums over tokens of b: the bias's per-sample gradients [n,o], in the dtype sums
    are taken in.
    """
    wide = torch.float64 if torch.float64 in (b.dtype, V_dtype) else torch.float32
    if offsets is None:
        return b.sum(1, dtype=wide)
    sample = torch.bucketize(torch.arange(b.shape[0], device=b.device), offsets[1:], right=True)
    return b.new_zeros((offsets.shape[0] - 1, b.shape[1]), dtype=wide).index_add(
        0, sample, b.to(wide)
    )
