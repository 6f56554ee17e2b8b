"""One optimizer step as attribution sees it: the weights, the update rules as they stand before it,
and (afterwards) the batch's gradient.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from inrun.methods.base import Method
from inrun.updates import Update, blockwise, coalition_slope
from inrun_kernels import memory
from inrun_kernels.backend import read_together

#: Gauss-Legendre nodes for the mean Jacobian of rules that mix elements
_JACOBIAN_NODES = 3


class Step:
    """The facts of a step.

    Args:
        updates: name -> rule of the optimizer, for every tracked parameter.
        plain: name -> the rule ``lr * gradient``.
        weights: name -> parameter, not yet moved.
        gradient: name -> G, what the optimizer gets (after clipping, unscaling, averaging);
            parameters without a gradient are left out, as the optimizer does.
        n: samples in the step.
        squares: name -> ``sum_i g_i^2`` elementwise, in G's scale; asked for only where an element
            has no state, or a warming_up one.
        settled: parameters none of whose elements is without state, as an earlier step has found:
            that is not looked for again.
    """

    def __init__(
        self,
        updates: Mapping[str, Update],
        plain: Mapping[str, Update],
        weights: Mapping[str, Tensor],
        gradient: Mapping[str, Tensor] | None = None,
        n: int = 0,
        squares: Callable[[str], Tensor | None] | None = None,
        settled: Collection[str] = (),
    ):
        self.updates, self.plain, self.weights = updates, plain, weights
        self.gradient: Mapping[str, Tensor] = gradient or {}
        self.n, self._squares = n, squares
        self._square_cache: dict[str, Tensor | None] = {}
        self._masks: dict[str, Tensor | None] = {
            name: None for name in settled if name in updates and not updates[name].rough_everywhere
        }
        #: frozen slopes are used for several targets: find them once, at the price of as much
        #: memory as the weights
        self.keep_slopes = False
        self._frozen: dict[tuple[str, str], Tensor] = {}
        self._slopes: dict[tuple, Tensor] = {}

    def rules(self, method: Method) -> Mapping[str, Update]:
        return self.plain if method.update == "sgd" else self.updates

    def moved(self, method: Method, fraction: float) -> dict[str, Tensor]:
        """Weights after the update with ``fraction * G``."""
        return self._of_each(self.rules(method), lambda rule, g: rule.weight - rule(fraction * g))

    def without_samples(self) -> dict[str, Tensor]:
        """Weights after the optimizer's own update with no gradient: momentum and decay alone."""
        return self._of_each(self.updates, lambda rule, g: rule.weight - rule(0.0 * g))

    def middle(self, method: Method) -> dict[str, Tensor]:
        """(u(0) + u(G)) / 2, the middle of the way from "nobody" to "everybody"."""
        return self._of_each(
            self.rules(method), lambda rule, g: rule(torch.zeros_like(g)).add_(rule(g)).mul_(0.5)
        )

    def _of_each(
        self, rules: Mapping[str, Update], function: Callable[[Update, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        return {
            name: blockwise(function, rules[name], g)
            if rules[name].elementwise
            else function(rules[name], g)
            for name, g in self.gradient.items()
        }

    def frozen(self, method: Method, name: str, cotangent: Tensor) -> Tensor:
        """The direction in gradient space with the optimizer's state frozen before the step: known
        without the gradient.
        """
        rule = self.rules(method)[name]
        if not self.keep_slopes:
            return blockwise(lambda rule, v: rule.frozen_slope() * v, rule, cotangent)
        key = method.update, name
        if key not in self._frozen:
            self._frozen[key] = blockwise(lambda rule, _: rule.frozen_slope(), rule, rule.weight)
        return torch.mul(
            self._frozen[key],
            cotangent,
            out=memory.empty(cotangent.shape, cotangent.dtype, cotangent.device),
        )

    def pull_back(
        self,
        method: Method,
        name: str,
        cotangent: Tensor,
        lo: float = 0.0,
        hi: float = 1.0,
        at: float | None = None,
    ) -> Tensor:
        """``[integral over s in [lo, hi] of J(s G)]^T cotangent`` with J = du/dG: the direction in
        gradient space of a direction in weight space.

        For an elementwise rule that integral is the secant ``(u(hi G) - u(lo G)) / G``, or its mean
        over coalitions where an element has no state. Otherwise it is ``(hi - lo) J(at G)^T``, or a
        quadrature where no point is given.
        """
        rule, g = self.rules(method)[name], self.gradient[name]
        if rule.elementwise:
            V = blockwise(lambda rule, g, v: rule.secant(g, lo, hi) * v, rule, g, cotangent)
            return self.smoothed(V, rule, name, cotangent, lo, hi)
        if at is not None:
            return (hi - lo) * rule.vjp(at * g, cotangent)
        points, weights = gauss(_JACOBIAN_NODES)
        parts = [
            (hi - lo) * weight * rule.vjp((lo + (hi - lo) * point) * g, cotangent)
            for point, weight in zip(points, weights)
        ]
        return reduce(torch.add, parts)

    def smoothed(
        self, V: Tensor, rule: Update, name: str, cotangent: Tensor, lo: float, hi: float
    ) -> Tensor:
        """V with the slope of elements without state, or with one that this batch outweighs,
        averaged over coalitions.
        """
        mask = self._stateless(name) if rule is self.updates[name] else rule.stateless()
        if (mask is None and not rule.warming_up) or self._squares is None:
            return V
        g = self.gradient[name]
        if mask is not None and not rule.rough_everywhere:
            mask = mask & (g != 0)
        if not rule.warming_up and (mask is None or not bool(mask.any())):
            return V
        if name not in self._square_cache:
            self._square_cache[name] = self._squares(name)
        q = self._square_cache[name]
        if q is None:
            return V
        if rule.warming_up:
            mask = rule.noise_dominated(q) & (g != 0)
            if not bool(mask.any()):
                return V
        key = (name, rule is self.updates[name], lo, hi)  # the same for every target
        if key not in self._slopes:
            part = rule.map_tensors(lambda tensor: tensor.expand_as(g)[mask])
            # hundreds of passes: a piece at a time
            average = partial(coalition_slope, n=self.n, lo=lo, hi=hi)
            self._slopes[key] = blockwise(average, part, g[mask], q[mask].to(g.dtype))
        V = V.clone()
        V[mask] = self._slopes[key] * cotangent[mask]
        return V

    def _stateless(self, name: str) -> Tensor | None:
        if name not in self._masks:
            self._masks[name] = self.updates[name].stateless()
        return self._masks[name]

    def stateless_share(self) -> float:
        """Share of the elements that have no second moment yet."""
        masks = {name: self._stateless(name) for name in self.updates}
        total = sum(w.numel() for w in self.weights.values())
        counts = read_together(
            {name: mask.sum() for name, mask in masks.items() if mask is not None}
        )
        return sum(counts.values()) / max(total, 1)

    @property
    def settled(self) -> set[str]:
        """Parameters of which this step knows that no element is without state."""
        return {name for name, mask in self._masks.items() if mask is None}


def gauss(count: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(count)
    return (0.5 * (x + 1.0)).tolist(), (0.5 * w).tolist()
