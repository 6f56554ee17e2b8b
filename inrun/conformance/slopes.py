"""Slopes of an update on the segment from nobody to everybody, for the oracle."""

import numpy as np
import torch
from torch import Tensor

from inrun.conformance.optimizers import Rule

#: an element's q counts as no less than this share of the q-weighted mean of q
LEAST = 1e-3


def secant(rule: Rule, G: Tensor, lo: float, hi: float) -> Tensor:
    """The secant of the update between lo G and hi G, G being the batch's gradient."""
    return torch.where(G == 0, 0.0, (rule(hi * G) - rule(lo * G)) / torch.where(G == 0, 1.0, G))


def directions(
    rules: dict[str, Rule],
    G: dict[str, Tensor],
    q: dict[str, Tensor],
    n: int,
    gradient: dict[str, Tensor],
    ends: tuple[float, float],
) -> dict[str, Tensor]:
    """Secants times the target's gradient; where the update is a sign, mean slopes over coalitions
    in their place, and what these lack to the sum along ``G r / (q (1 - r))``.

    q: the sum over the n samples of the squared per-sample gradient.
    """
    if not gradient:  # the target depends on nothing that this batch moves
        return {}
    slopes = {name: secant(rules[name], G[name], *ends) for name in gradient}
    rough = {name: rules[name].rough(G[name], q[name]) for name in gradient}
    mean = {name: coalition_mean(rules[name], G[name], q[name], n, *ends) for name in gradient}
    lacks = sum(
        (G[name] * (slopes[name] - mean[name]) * gradient[name])[rough[name]].sum()
        for name in gradient
    )
    rough_q = torch.cat([q[name][rough[name]].flatten() for name in gradient])
    least = LEAST * (rough_q**2).sum() / rough_q.sum() if len(rough_q) else 0.0
    along = {}
    for name in gradient:
        r = common(G[name], q[name], n)
        own = q[name] * (1 - r) + least
        along[name] = torch.where(rough[name] & (own > 0), G[name] * r / own, 0.0)
    reach = sum((along[name] * G[name]).sum() for name in gradient)
    factor = lacks / reach if reach != 0 else 0.0
    return {
        name: torch.where(rough[name], mean[name], slopes[name]) * gradient[name]
        + factor * along[name]
        for name in gradient
    }


def coalition_mean(rule: Rule, G: Tensor, q: Tensor, n: int, lo: float, hi: float) -> Tensor:
    """(1 - r) D + r secant, r = G^2 / (n q): D the mean slope of the update over a normal law
    around x G (n-1)/n, as E[z u] / s, s^2 = q (x (1-x) (n-1)/n + 1/n), x uniform on [lo, hi]; times
    hi - lo.
    """
    sizes, noises = np.polynomial.legendre.leggauss(8), np.polynomial.hermite_e.hermegauss(9)
    total = torch.zeros_like(G)
    for x, weight in zip(lo + (hi - lo) * (sizes[0] + 1) / 2, sizes[1] / 2):
        s = torch.sqrt(q * float(x * (1 - x) * (n - 1) / n + 1 / n))
        for z, share in zip(noises[0], noises[1] / np.sqrt(2 * np.pi)):
            u = rule(float(x) * G * (n - 1) / n + float(z) * s)
            total += float(weight * share * z) * u / torch.where(s == 0, 1.0, s)
    r = common(G, q, n)
    mixed = (1 - r) * (hi - lo) * total + r * secant(rule, G, lo, hi)
    return torch.where(q == 0, 0.0, mixed)


def common(G: Tensor, q: Tensor, n: int) -> Tensor:
    """r = G^2 / (n q); at most 1 but for rounding."""
    r = G**2 / (n * torch.where(q == 0, 1.0, q))
    return torch.where(q == 0, 0.0, r.clamp(max=1.0))
