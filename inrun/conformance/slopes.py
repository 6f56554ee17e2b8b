"""Slopes of an update on the segment from nobody to everybody, for the oracle."""

import numpy as np
import torch
from torch import Tensor

from inrun.conformance.optimizers import Rule


def slope(rule: Rule, G: Tensor, q: Tensor, n: int, lo: float, hi: float) -> Tensor:
    """The secant of the update between lo G and hi G; where the update is a sign, its mean over
    coalitions.

    G: the batch's gradient. q: the sum over its n samples of the squared per-sample gradient.
    """
    secant = torch.where(G == 0, 0.0, (rule(hi * G) - rule(lo * G)) / torch.where(G == 0, 1.0, G))
    return torch.where(rule.rough(G, q), coalition_mean(rule, G, q, n, lo, hi), secant)


def coalition_mean(rule: Rule, G: Tensor, q: Tensor, n: int, lo: float, hi: float) -> Tensor:
    """E[u(c + h) - u(c - h)] / (2 h) over c ~ N(x G (n-1)/n, x (1-x) q (n-1)/n), h = sqrt(q / n),
    x uniform on [lo, hi]; times hi - lo.
    """
    h = torch.sqrt(q / n)
    sizes, noises = np.polynomial.legendre.leggauss(8), np.polynomial.hermite_e.hermegauss(9)
    total = torch.zeros_like(G)
    for x, weight in zip(lo + (hi - lo) * (sizes[0] + 1) / 2, sizes[1] / 2):
        for z, share in zip(noises[0], noises[1] / np.sqrt(2 * np.pi)):
            c = float(x) * G * (n - 1) / n + float(z) * torch.sqrt(
                float(x * (1 - x)) * q * (n - 1) / n
            )
            total += float(weight * share) * (rule(c + h) - rule(c - h))
    return torch.where(q == 0, 0.0, (hi - lo) * total / (2 * torch.where(q == 0, 1.0, h)))
