"""The slope of an elementwise update averaged over coalitions, for elements where the update is a
kink or a jump.

Where Adam has no second moment yet its update is a sign, and the full gradient G is the worst place
to linearise: single shares g_i / G explode while they cancel. A Shapley value averages over
coalitions, so the slope is averaged over them too: with q = sum_i g_i^2 elementwise and n samples,
the gradient of a random coalition is about c ~ N(x G (n-1)/n, x (1-x) q (n-1)/n), x uniform on [0,
1], and the slope at the scale of one typical sample h = sqrt(q/n) is E[u(c + h) - u(c - h)] / (2
h).
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
    h = (q / n).sqrt()
    safe = torch.where(h > 0, h, 1.0)
    total = torch.zeros_like(g)
    for size, size_weight in zip(sizes, size_weights):
        x = lo + (hi - lo) * 0.5 * (size + 1.0)
        mean = (x * (n - 1) / n) * g
        spread = math.sqrt(x * (1.0 - x) * (n - 1) / n) * q.sqrt()
        for noise, noise_weight in zip(noises, noise_weights):
            c = mean + noise * spread
            total += (0.5 * size_weight * noise_weight) * (update(c + h) - update(c - h))
    return torch.where(h > 0, (hi - lo) * total / (2.0 * safe), 0.0)
