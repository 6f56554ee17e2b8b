"""LayerNorm and RMSNorm: per-sample gradients of scale and shift, and their dots.

    y = (x - mean) rstd w + bias        RMSNorm: mean = 0, no bias
    g_n = sum_t b_nt (x_nt - mean_nt) rstd_nt

A norm's per-sample gradients are vectors [n,i], small enough to be written down; the dots are then
one small product.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from inrun_kernels import reference, shapes
from inrun_kernels.backend import accumulation_dtype, backend_for, operator


class NormDots(NamedTuple):
    """What `norm_dots` returns."""

    wgrad: Tensor
    """Gradient of the scale [i]."""
    bias_grad: Tensor
    """Gradient of the shift [i]."""
    dots: Tensor
    """Dots [k,n] of each sample's share of both."""


def norm_dots(
    x: Tensor,
    b: Tensor,
    rstd: Tensor,
    V: Tensor,
    mean: Tensor | None = None,
    bias_V: Tensor | None = None,
) -> NormDots:
    """Gradients of a norm's scale and shift, and their dots.

    x [n,t,i] its input, b [n,t,i] its output gradient; rstd and mean [n,t] its statistics (mean
    None: RMSNorm); V [k,i] and bias_V [k,i] directions (bias_V None: the shift is left out of the
    dots). float32 results (float64 if an input is float64). Raises ValueError for shapes that do
    not fit, TypeError for integer tensors.
    """
    if x.ndim != 3 or x.shape != b.shape or rstd.shape != x.shape[:2]:
        raise ValueError(
            f"norm_dots: x {list(x.shape)} and b {list(b.shape)} must be [n,t,i], rstd "
            f"{list(rstd.shape)} [n,t]"
        )
    if mean is not None and mean.shape != rstd.shape:
        raise ValueError(
            f"norm_dots: mean {list(mean.shape)} must be [n,t] = {list(rstd.shape)}, or None "
            "for RMSNorm"
        )
    shapes.check_directions("norm_dots", V, (x.shape[-1],), "[k,i]")
    if bias_V is not None:
        shapes.check_directions("norm_dots: bias_V", bias_V, (x.shape[-1],), "[k,i]")
    shapes.check_floating("norm_dots", x, b, rstd, V)
    return NormDots(*_norm_dots(x, b, rstd, V, mean, bias_V))


@operator("norm_dots")
def _norm_dots(
    x: Tensor, b: Tensor, rstd: Tensor, V: Tensor, mean: Tensor | None, bias_V: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    backend = backend_for(x, b, rstd, V)
    if backend == "reference":
        return reference.norm_dots(x, b, rstd, V, mean, bias_V)
    if backend == "triton":
        from inrun_kernels.jit.norm_dots import launch

        weight, bias = launch(x, b, rstd, mean)
    else:
        weight, bias = _per_sample(x, b, rstd, mean, accumulation_dtype(x, b, rstd, V))
    dots = torch.mm(V.to(weight.dtype), weight.t())
    if bias_V is not None:
        dots.addmm_(bias_V.to(bias.dtype), bias.t())
    return weight.sum(0), bias.sum(0), dots


@_norm_dots.register_fake
def _(x, b, rstd, V, mean, bias_V):
    wide = accumulation_dtype(x, b, rstd, V)
    scale = V.new_empty(V.shape[1:], dtype=wide)
    return scale, torch.empty_like(scale), V.new_empty((V.shape[0], x.shape[0]), dtype=wide)


def _per_sample(
    x: Tensor, b: Tensor, rstd: Tensor, mean: Tensor | None, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Per-sample gradients [n,i] of scale and shift.

    By PyTorch's own LayerNorm backward of one sample at a time.
    """
    gradients = [torch.empty(x.shape[0], x.shape[2], dtype=wide, device=x.device) for _ in range(2)]
    rstd = rstd.to(wide)[..., None]
    mean = torch.zeros_like(rstd) if mean is None else mean.to(wide)[..., None]
    unit = torch.ones(x.shape[2], dtype=wide, device=x.device)
    for n in range(x.shape[0]):
        _, gradients[0][n], gradients[1][n] = torch.ops.aten.native_layer_norm_backward(
            b[n].to(wide),
            x[n].to(wide),
            x.shape[2:],
            mean[n],
            rstd[n],
            unit,
            unit,
            [False, True, True],
        )
    return gradients[0], gradients[1]


@operator("layer_norm_backward")
def layer_norm_backward(
    b: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, w: Tensor, V: Tensor, bias_V: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx [n,t,i], weight gradient, bias gradient, dots) of LayerNorm.

    In one pass over x and b [n,t,i].
    """
    wide = accumulation_dtype(x, b, rstd, V)
    # A CPU's LayerNorm takes half-precision x with float32 statistics as they are; a GPU's wants
    # one dtype.
    native = wide if x.is_cuda or wide == torch.float64 else x.dtype
    mean, rstd, w = (y.to(wide) for y in (mean[..., None], rstd[..., None], w))
    backward = torch.ops.aten.native_layer_norm_backward
    if backend_for(x, b, V) != "torch":
        whole = (b.to(wide), x.to(wide), x.shape[2:], mean, rstd, w, w, [True, False, False])
        dx = backward(*whole)[0].to(x.dtype)
        return dx, *_norm_dots(x, b, rstd[..., 0], V, mean[..., 0], bias_V)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    weight, bias = (
        torch.empty(x.shape[0], x.shape[2], dtype=wide, device=x.device) for _ in range(2)
    )
    for n in range(x.shape[0]):
        dx[n], weight[n], bias[n] = backward(
            b[n].to(native),
            x[n].to(native),
            x.shape[2:],
            mean[n],
            rstd[n],
            w,
            w,
            [True, True, True],
        )
    dots = torch.mm(V.to(wide), weight.t())
    if bias_V is not None:
        dots.addmm_(bias_V.to(wide), bias.t())
    return dx, weight.sum(0), bias.sum(0), dots


@layer_norm_backward.register_fake
def _(b, x, mean, rstd, w, V, bias_V):
    wide = accumulation_dtype(x, b, rstd, V)
    scale = V.new_empty(V.shape[1:], dtype=wide)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, scale, torch.empty_like(scale), V.new_empty((V.shape[0], x.shape[0]), dtype=wide)
