"""LayerNorm and RMSNorm: per-sample gradients of scale and shift, and their dots.

    y = (x - mean) rstd w + bias        g_n = sum_t b_nt (x_nt - mean_nt) rstd_nt        RMSNorm: mean = 0, no bias

A norm's per-sample gradients are vectors [n,i], small enough to be written down; the dots are then one small product.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import reference, shapes
from kernels.backend import accumulation_dtype, backend_for, operator


class NormDots(NamedTuple):
    """Gradients of a norm's scale [i] and shift [i], and dots [k,n] of each sample's share of both."""

    wgrad: Tensor
    bias_grad: Tensor
    dots: Tensor


def norm_dots(
    x: Tensor, b: Tensor, rstd: Tensor, V: Tensor, mean: Tensor | None = None, bias_V: Tensor | None = None
) -> NormDots:
    """Gradients of a norm's scale and shift and their dots, from its input, output gradient and statistics.

    x, b [n,t,i]; rstd and mean [n,t] (mean None: RMSNorm); V [k,i] and bias_V [k,i] directions (bias_V None: the shift
    is left out of the dots). float32 results (float64 if an input is float64).
    Raises ValueError for shapes that do not fit, TypeError for integer tensors.
    """
    if x.ndim != 3 or x.shape != b.shape or rstd.shape != x.shape[:2]:
        raise ValueError(
            f"norm_dots: x {list(x.shape)} and b {list(b.shape)} must be [n,t,i], rstd {list(rstd.shape)} [n,t]"
        )
    if mean is not None and mean.shape != rstd.shape:
        raise ValueError(f"norm_dots: mean {list(mean.shape)} must be [n,t] = {list(rstd.shape)}, or None for RMSNorm")
    shapes.check_directions("norm_dots", V, (x.shape[-1],), "[k,i]")
    if bias_V is not None:
        shapes.check_directions("norm_dots: bias_V", bias_V, (x.shape[-1],), "[k,i]")
    shapes.check_floating("norm_dots", x, b, rstd, V)
    return NormDots(*_norm_dots(x, b, rstd, V, mean, bias_V))


@operator("norm_dots")
def _norm_dots(
    x: Tensor, b: Tensor, rstd: Tensor, V: Tensor, mean: Tensor | None, bias_V: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    backend = backend_for(x, b, V)
    if backend == "reference":
        return reference.norm_dots(x, b, rstd, V, mean, bias_V)
    if backend == "triton":
        from kernels.jit.norm_dots import launch

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


def _per_sample(x: Tensor, b: Tensor, rstd: Tensor, mean: Tensor | None, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Per-sample gradients [n,i] of scale and shift, one sample at a time so that intermediates stay in cache."""
    weight = torch.empty(x.shape[0], x.shape[2], dtype=wide, device=x.device)
    bias = torch.empty_like(weight)
    for n in range(x.shape[0]):
        gradient = b[n].to(wide)
        centred = x[n].to(wide) if mean is None else x[n].to(wide) - mean[n].to(wide)[:, None]
        torch.sum(gradient, 0, out=bias[n])
        torch.mv((centred * gradient).t(), rstd[n].to(wide), out=weight[n])
    return weight, bias
