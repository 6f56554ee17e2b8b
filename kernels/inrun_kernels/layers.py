"""Layers whose backward also yields dots: linear, LayerNorm, RMSNorm.

Dots leave the graph as the gradient of a probe, an input of zeros [k,n] that the forward ignores.
Autograd then adds the dots of all layers (and of all uses of a shared weight) into `probe.grad`,
with no side channel: the same under torch.compile, activation checkpointing and autocast. One probe
per layer keeps layers apart.

    probe = torch.zeros(k, n, requires_grad=True)
    y = inrun_kernels.linear(x, weight, bias, V, probe, bias_V=V_bias)  # V [k,o,i]: directions
    ...; loss.backward()                          # probe.grad [k,n] = sum over layers of <g_n, V_k>

A layer computes in the dtype of x (under autocast: in autocast's), its weight gradient is summed in
float32 and returned in the weight's dtype. Statistics of norms and normalised values are taken in
float32 (float64 stays). A weight that does not require a gradient still yields dots, and a probe
that does not require one leaves the ordinary backward. Double backward is not defined and raises.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from inrun_kernels import shapes
from inrun_kernels.backend import accumulation_dtype, operator
from inrun_kernels.norm_dots import layer_norm_backward, norm_dots
from inrun_kernels.wgrad_dots import outer_dots, wgrad_dots


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
    """y = x w^T + bias, whose backward adds <g_n, V_k> to the gradient of `probe`.

    x [n,...,i]; w [o,i]; bias [o] or None; V [k,o,i]; probe [k,n] zeros; bias_V [k,o], whose dots
    with the bias's gradient are added too, or None to leave the bias out. Packed samples: x [p,i]
    with offsets [n+1]. Returns [n,...,o] in the dtype of x (or autocast's). Raises ValueError for
    shapes that do not fit, TypeError for integer tensors.
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


def layer_norm(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    V: Tensor,
    probe: Tensor,
    *,
    bias_V: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm over the last axis, whose backward adds <g_n, V_k> to the gradient of `probe`.

    x [n,...,i]; w [i]; bias [i] or None; V [k,i]; probe [k,n] zeros; bias_V [k,i], whose dots with
    the shift's gradient are added too, or None to leave the shift out. Returns [n,...,i] in the
    dtype of x. Raises ValueError for shapes that do not fit, TypeError for integer tensors.
    """
    _check_norm("layer_norm", x, w, V, probe)
    if bias_V is not None:
        shapes.check_directions("layer_norm: bias_V", bias_V, tuple(w.shape), "[k,i]")
        if bias is None:
            raise ValueError(
                "layer_norm: bias_V is given for a layer without a bias; pass bias_V=None"
            )
    return _layer_norm(x, w, bias, V, bias_V, probe, eps)[0]


def rms_norm(x: Tensor, w: Tensor, V: Tensor, probe: Tensor, *, eps: float = 1e-6) -> Tensor:
    """RMSNorm over the last axis, whose backward adds <g_n, V_k> to the gradient of `probe`.

    y = x rsqrt(mean(x^2) + eps) w. Shapes and errors as `layer_norm`.
    """
    _check_norm("rms_norm", x, w, V, probe)
    return _rms_norm(x, w, V, probe, eps)[0]


def autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast prescribes for products; as it is without, or in float64."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _check_norm(op: str, x: Tensor, w: Tensor, V: Tensor, probe: Tensor) -> None:
    if x.ndim < 2 or w.ndim != 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"{op}: x {list(x.shape)} must be [n,...,i] and w {list(w.shape)} [i]")
    shapes.check_directions(op, V, tuple(w.shape), "[k,i]")
    shapes.check_probe(op, probe, V.shape[0], x.shape[0])
    shapes.check_floating(op, x, w, V)


def _samples(x: Tensor) -> Tensor:
    """[n,...,d] as [n,t,d]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


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
        gw, dots = wgrad_dots(a, b, V, offsets)
    elif to_probe:
        dots = outer_dots(a, b, V, offsets)
    elif to_w:
        gw = b.flatten(0, -2).t() @ a.flatten(0, -2)
    if to_bias or (to_probe and bias_V is not None):
        sums = _bias_sums(b, offsets, V.dtype)
        gbias = sums.sum(0).to(ctx.bias_dtype) if to_bias else None
        if dots is not None and bias_V is not None:
            ones = sums.new_ones(sums.shape[0], 1, 1)
            dots = dots + outer_dots(ones, sums[:, None], bias_V[..., None])
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


def _bias_sums(b: Tensor, offsets: Tensor | None, V_dtype: torch.dtype) -> Tensor:
    """Per-sample sums of b over tokens: the bias's gradients [n,o], in the dtype of sums."""
    wide = torch.float64 if torch.float64 in (b.dtype, V_dtype) else torch.float32
    if offsets is None:
        return b.sum(1, dtype=wide)
    sample = torch.bucketize(torch.arange(b.shape[0], device=b.device), offsets[1:], right=True)
    return b.new_zeros((offsets.shape[0] - 1, b.shape[1]), dtype=wide).index_add(
        0, sample, b.to(wide)
    )


@operator("layer_norm")
def _layer_norm(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    V: Tensor,
    bias_V: Tensor | None,
    probe: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = accumulation_dtype(x)
    # a GPU's LayerNorm wants x and weight in one dtype, a CPU's does not
    native = wide if x.is_cuda else x.dtype
    shift = None if bias is None else bias.to(wide)
    y, mean, rstd = torch.native_layer_norm(
        _samples(x).to(native), x.shape[-1:], w.to(wide), shift, eps
    )
    return y.to(x.dtype).view(x.shape), mean[..., 0].to(wide).clone(), rstd[..., 0].to(wide).clone()


@_layer_norm.register_fake
def _(x, w, bias, V, bias_V, probe, eps):
    statistic = x.new_empty(
        (x.shape[0], x.numel() // (x.shape[0] * x.shape[-1])), dtype=accumulation_dtype(x)
    )
    return x.new_empty(x.shape), statistic, torch.empty_like(statistic)


def _save_layer_norm(ctx, inputs, output):
    x, w, bias, V, bias_V, probe, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, w, bias, V, bias_V, mean, rstd)
    ctx.probe_dtype = probe.dtype


def _backward_layer_norm(ctx, gy, _mean, _rstd):
    x, w, bias, V, bias_V, mean, rstd = ctx.saved_tensors
    to_x, to_w, to_bias, _, _, to_probe, _ = ctx.needs_input_grad
    gx, gw, gbias, dots = layer_norm_backward(_samples(gy), _samples(x), mean, rstd, w, V, bias_V)
    return (
        gx.view(x.shape) if to_x else None,
        gw.to(w.dtype) if to_w else None,
        gbias.to(bias.dtype) if to_bias else None,
        None,
        None,
        dots.to(ctx.probe_dtype) if to_probe else None,
        None,
    )


_layer_norm.register_autograd(_backward_layer_norm, setup_context=_save_layer_norm)


@operator("rms_norm")
def _rms_norm(x: Tensor, w: Tensor, V: Tensor, probe: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    samples = _samples(x).to(accumulation_dtype(x))
    rstd = torch.rsqrt(samples.square().mean(-1) + eps)
    y = samples * rstd[..., None] * w.to(samples.dtype)
    return y.to(x.dtype).view(x.shape), rstd


@_rms_norm.register_fake
def _(x, w, V, probe, eps):
    tokens = x.numel() // (x.shape[0] * x.shape[-1])
    return x.new_empty(x.shape), x.new_empty((x.shape[0], tokens), dtype=accumulation_dtype(x))


def _save_rms_norm(ctx, inputs, output):
    x, w, V, probe, _ = inputs
    ctx.save_for_backward(x, w, V, output[1])
    ctx.probe_dtype = probe.dtype


def _rms_norm_backward(ctx, gy, _rstd):
    x, w, V, rstd = ctx.saved_tensors
    to_x, to_w, _, to_probe, _ = ctx.needs_input_grad
    samples, gradient = _samples(x), _samples(gy)
    gx = gw = dots = None
    if to_x:
        b = gradient.to(rstd.dtype) * w.to(rstd.dtype)
        normed = samples.to(rstd.dtype) * rstd[..., None]
        gx = (b - normed * (b * normed).mean(-1, keepdim=True)) * rstd[..., None]
        gx = gx.to(x.dtype).view(x.shape)
    if to_w or to_probe:
        gw, _, dots = norm_dots(samples, gradient, rstd, V)
        gw = gw.to(w.dtype) if to_w else None
        dots = dots.to(ctx.probe_dtype) if to_probe else None
    return gx, gw, None, dots, None


_rms_norm.register_autograd(_rms_norm_backward, setup_context=_save_rms_norm)
