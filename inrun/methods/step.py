"""One optimizer step as attribution sees it: the weights, the update rules as they stand before it,
and (afterwards) the batch's gradient.
"""

from collections.abc import Callable, Collection, Mapping
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from inrun.methods.base import Method
from inrun.methods.rough import Missing, RoughElements
from inrun.updates import Update, blockwise
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
        self.n = n
        known = {name for name in settled if name in updates and not updates[name].rough_everywhere}
        self.rough = RoughElements(self.gradient, n, squares, known)
        #: frozen slopes are used for several targets: find them once, at the price of as much
        #: memory as the weights
        self.keep_slopes = False
        self._frozen: dict[tuple[str, str], Tensor] = {}
        self._nobody: dict[str, Tensor] | None = None
        #: (method, target) -> [2], what `watch` found
        self.watched: dict[tuple[str, str], Tensor] = {}

    def rules(self, method: Method) -> Mapping[str, Update]:
        return self.plain if method.update == "sgd" else self.updates

    def moved(self, method: Method, fraction: float) -> dict[str, Tensor]:
        """Weights after the update with ``fraction * G``."""
        return self._of_each(self.rules(method), lambda rule, g: rule.weight - rule(fraction * g))

    def between(self, method: Method, node: float, lo: float, hi: float) -> dict[str, Tensor]:
        """Weights in the middle between those after ``u(lo G)`` and after ``u(hi G)``.

        The middle of the way that the weights go, not of the gradient: a cold optimizer's update is
        nearly a sign, and has gone all of the way at the first small part of G. For rules that mix
        elements, the weights after ``u(node G)``.
        """

        def at(rule: Update, g: Tensor) -> Tensor:
            if not rule.elementwise:
                return rule.weight - rule(node * g)
            return rule.weight - 0.5 * (rule(lo * g) + rule(hi * g))

        return self._of_each(self.rules(method), at)

    def without_samples(self) -> dict[str, Tensor] | None:
        """w - u(0): the weights after the optimizer's own update without a gradient, by momentum
        and decay alone; None where that leaves them all as they are. Found once.

        Of the parameters that have a gradient or, before the backward, of all that are tracked.
        """
        if self.updates is self.plain:
            return None
        if self._nobody is None:
            self._nobody = self._of_each(
                self.updates, lambda rule, g: rule.weight - rule(torch.zeros_like(g))
            )
            if all(torch.equal(at, self.weights[name]) for name, at in self._nobody.items()):
                self._nobody = {}
        return self._nobody or None

    @property
    def nobody(self) -> tuple[str, bool]:
        """The key of a target's evaluations at `without_samples`."""
        return "w - u(0)", len(self.gradient) in (0, len(self.updates))

    def watch(self, method: Method, target: str, gradient: Mapping[str, Tensor]) -> None:
        """Notes ``<G, V>`` with the frozen slope and with the secant, for a gradient of a target:
        how far the frozen slope misstates the sum of the step's values.
        """
        none = next(iter(self.gradient.values())).new_zeros((), dtype=torch.float64)
        frozen, taken = [none], [none]
        for name, g in self.gradient.items():
            if name in gradient and self.updates[name].elementwise:
                rule, v = self.updates[name], gradient[name]
                secants = blockwise(lambda rule, g, v: rule.secant(g) * v, rule, g, v)
                frozen.append((self.frozen(method, name, v) * g).sum(dtype=torch.float64))
                taken.append((secants * g).sum(dtype=torch.float64))
        pair = [torch.stack([x.to(none.device) for x in side]).sum() for side in (frozen, taken)]
        self.watched[method.name, target] = torch.stack(pair)

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
            for name, g in (self.gradient or self.weights).items()
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

    def pulled_back(
        self,
        method: Method,
        cotangents: Mapping[str, Tensor],
        lo: float = 0.0,
        hi: float = 1.0,
        at: float | None = None,
    ) -> dict[str, Tensor]:
        """``[integral over s in [lo, hi] of J(s G)]^T cotangent`` with J = du/dG, for each
        parameter that has a gradient: the direction in gradient space of one in weight space.

        For an elementwise rule that integral is the secant ``(u(hi G) - u(lo G)) / G``; where an
        element has no state, its mean over coalitions, and the sum of all is that of the secants.
        For other rules it is ``(hi - lo) J(at G)^T``, or a quadrature where no point is given.
        """
        missing, V = Missing(), {}
        for name, cotangent in cotangents.items():
            if name in self.gradient:
                V[name] = self.pull_back(method, name, cotangent, lo, hi, at, missing)
        return self.rough.complete(V, missing)

    def pull_back(
        self,
        method: Method,
        name: str,
        cotangent: Tensor,
        lo: float = 0.0,
        hi: float = 1.0,
        at: float | None = None,
        missing: Missing | None = None,
    ) -> Tensor:
        """`pulled_back` of one parameter, without what its averaged slopes lack to the sum of the
        secants: that is noted in `missing`.
        """
        rule, g = self.rules(method)[name], self.gradient[name]
        if rule.elementwise:
            V = blockwise(lambda rule, g, v: rule.secant(g, lo, hi) * v, rule, g, cotangent)
            if rule is not self.updates[name]:
                return V
            return self.rough.smoothed(V, rule, name, cotangent, (lo, hi), missing or Missing())
        if at is not None:
            return (hi - lo) * rule.vjp(at * g, cotangent)
        points, weights = gauss(_JACOBIAN_NODES)
        parts = [
            (hi - lo) * weight * rule.vjp((lo + (hi - lo) * point) * g, cotangent)
            for point, weight in zip(points, weights)
        ]
        return reduce(torch.add, parts)

    def stateless_share(self) -> float:
        """Share of the elements that have no second moment yet."""
        masks = {name: self.rough.stateless(name, rule) for name, rule in self.updates.items()}
        total = sum(w.numel() for w in self.weights.values())
        counts = read_together(
            {name: mask.sum() for name, mask in masks.items() if mask is not None}
        )
        return sum(counts.values()) / max(total, 1)

    @property
    def settled(self) -> set[str]:
        """Parameters of which this step knows that no element is without state."""
        return {name for name, mask in self.rough.masks.items() if mask is None}


def gauss(count: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(count)
    return (0.5 * (x + 1.0)).tolist(), (0.5 * w).tolist()
