"""The slope of an elementwise update averaged over coalitions, for elements where the update is a
kink or a jump.

Where Adam has no second moment yet its update is a sign, and the full gradient G is the worst place
to linearise: single shares g_i / G explode while they cancel. A Shapley value averages over
coalitions, so the slope is averaged over them too. With q = sum_i g_i^2 elementwise and n samples,
the gradient of a random coalition and the share of a sample that joins it are together about normal
around x G (n-1)/n, with variance s^2 = q (x (1-x) (n-1)/n + 1/n), x uniform on [0, 1]. The mean
slope over a normal distribution needs no difference (Stein): D = E[z u(mean + s z)] / s, z standard
normal.

D says how values of different samples differ. Where all samples agree, their sum is what counts,
and the secant has it. The slope s for which s g_i is closest to the values, in least squares over
the samples, is ``(1 - r) D + r secant`` with r = G^2 / (n q), the share of q that the samples have
in common.
"""

import math

import numpy as np
import torch
from torch import Tensor

from inrun.updates.base import Update

#: Gauss-Legendre nodes in the coalition's size, Gauss-Hermite nodes in its composition
SIZE_NODES, NOISE_NODES = 8, 9


def coalition_slope(
    update: Update, g: Tensor, q: Tensor, n: int, lo: float = 0.0, hi: float = 1.0
) -> Tensor:
    """Expected slope of an elementwise `update` over coalitions of size fraction in [lo, hi], times
    (hi - lo).

    Args:
        update: rule whose tensors have the shape of `g`.
        g: G, the gradient of the whole batch, any shape.
        q: sum over samples of the squared per-sample gradient, of g's shape, in the same scale as
            g.
        n: number of samples in the batch.

    Returns: tensor of g's shape; 0 where q is 0 (no sample touched the element).
    """
    sizes, size_weights = np.polynomial.legendre.leggauss(SIZE_NODES)
    noises, noise_weights = np.polynomial.hermite_e.hermegauss(NOISE_NODES)
    noise_weights = noise_weights / noise_weights.sum()
    root = q.sqrt()
    total = torch.zeros_like(g)
    for size, size_weight in zip(sizes, size_weights):
        x = lo + (hi - lo) * 0.5 * (size + 1.0)
        mean = (x * (n - 1) / n) * g
        share = math.sqrt(x * (1.0 - x) * (n - 1) / n + 1.0 / n)
        for noise, noise_weight in zip(noises, noise_weights):
            if noise_weight * noise:
                weight = 0.5 * size_weight * noise_weight * noise / share
                total += weight * update(mean + (noise * share) * root)
    spread = torch.where(root > 0, (hi - lo) * total / torch.where(root > 0, root, 1.0), 0.0)
    return torch.lerp(spread, update.secant(g, lo, hi).expand_as(g), agreement(g, q, n))


def agreement(g: Tensor, q: Tensor, n: int) -> Tensor:
    """r = G^2 / (n q) elementwise: 1 where all n shares of G are equal, about 1/n where they are
    noise.
    """
    return torch.where(q > 0, g * g / (n * torch.where(q > 0, q, 1.0)), 0.0).clamp_(max=1.0)
