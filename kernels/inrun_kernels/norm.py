"""LayerNorm and RMSNorm whose backward also yields dots (the convention is in
inrun_kernels.layers).

Statistics and the normalised values are taken in float32 (float64 stays), whatever the dtype of x.
"""

import torch
from torch import Tensor

from inrun_kernels import shapes
from inrun_kernels.backend import accumulation_dtype, operator
from inrun_kernels.norm_dots import _layer_norm_backward, _norm_dots


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
    """LayerNorm over the last axis; its backward adds <g_n, V_k> (+ the shift's) to the gradient of
    `probe`.

    x [n,...,i]; w [i]; bias [i] or None; V [k,i]; probe [k,n] zeros; bias_V [k,i], or None to leave
    the shift out. Returns [n,...,i] in the dtype of x. Raises ValueError for shapes that do not
    fit, TypeError for integer tensors.
    """
    _check("layer_norm", x, w, V, probe)
    if bias_V is not None:
        shapes.check_directions("layer_norm: bias_V", bias_V, tuple(w.shape), "[k,i]")
        if bias is None:
            raise ValueError(
                "layer_norm: bias_V is given for a layer without a bias; pass bias_V=None"
            )
    return _layer_norm(x, w, bias, V, bias_V, probe, eps)[0]


def rms_norm(x: Tensor, w: Tensor, V: Tensor, probe: Tensor, *, eps: float = 1e-6) -> Tensor:
    """RMSNorm over the last axis, y = x rsqrt(mean(x^2) + eps) w; its backward adds <g_n, V_k> to
    the gradient of `probe`.

    Shapes and errors as `layer_norm`.
    """
    _check("rms_norm", x, w, V, probe)
    return _rms_norm(x, w, V, probe, eps)[0]


def _check(op: str, x: Tensor, w: Tensor, V: Tensor, probe: Tensor) -> None:
    if x.ndim < 2 or w.ndim != 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"{op}: x {list(x.shape)} must be [n,...,i] and w {list(w.shape)} [i]")
    shapes.check_directions(op, V, tuple(w.shape), "[k,i]")
    shapes.check_probe(op, probe, V.shape[0], x.shape[0])
    shapes.check_floating(op, x, w, V)


def _samples(x: Tensor) -> Tensor:
    """[n,...,i] as [n,t,i]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


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
    native = (
        wide if x.is_cuda else x.dtype
    )  # a GPU's LayerNorm wants x and weight in one dtype, a CPU's does not
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
    gx, gw, gbias, dots = _layer_norm_backward(_samples(gy), _samples(x), mean, rstd, w, V, bias_V)
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
        gw, _, dots = _norm_dots(samples, gradient, rstd, V, None, None)
        gw = gw.to(w.dtype) if to_w else None
        dots = dots.to(ctx.probe_dtype) if to_probe else None
    return gx, gw, None, dots, None


_rms_norm.register_autograd(_rms_norm_backward, setup_context=_save_rms_norm)
