"""Slopes where an update is a kink or a jump: elements without optimizer state, those of its first
steps that one batch outweighs, and all of Lion's.

There V has the slope averaged over coalitions (`inrun.updates.smoothing`), which orders samples as
the truth does, and whose sum is off. What is missing to the sum of the secants, which is the
step's, is added along what the samples agree about: a direction proportional to
``G r / (q (1 - r))`` elementwise gives all samples about the same, and nothing to one without a
gradient.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from inrun.updates import Update, agreement, blockwise, coalition_slope

#: Share of the q-weighted mean of q below which an element's own does not count: otherwise an
#: element whose gradient is rounding would weigh as much as any other.
_LEAST = 1e-3


@dataclass
class Missing:
    """What averaged slopes lack to the sum of the secants, over the parameters of one direction.

    Attributes:
        total: ``<G, V with secants> - <G, V>``, 0-dim float64.
        where: parameter name -> mask of the elements that have an averaged slope.
    """

    total: Tensor | None = None
    where: dict[str, Tensor] = field(default_factory=dict)

    def note(self, name: str, mask: Tensor, lacks: Tensor) -> None:
        """lacks: ``G (secant - slope) * cotangent`` of the masked elements."""
        lack = lacks.sum(dtype=torch.float64)
        self.total = lack if self.total is None else self.total + lack.to(self.total.device)
        self.where[name] = mask


class RoughElements:
    """The rough elements of a step's parameters, and their slopes.

    Args:
        gradient: name -> G.
        n: samples of the step.
        squares: name -> ``sum_i g_i^2`` elementwise in G's scale, None where that cannot be told;
            asked for only where an element is rough, or may be.
        settled: parameters none of whose elements is without state.
    """

    def __init__(
        self,
        gradient: Mapping[str, Tensor],
        n: int,
        squares: Callable[[str], Tensor | None] | None,
        settled: Collection[str],
    ):
        self.gradient, self.n, self._ask = gradient, n, squares
        self.masks: dict[str, Tensor | None] = dict.fromkeys(settled)
        self._squares: dict[str, Tensor | None] = {}
        self._slopes: dict[tuple, Tensor] = {}

    def stateless(self, name: str, rule: Update) -> Tensor | None:
        """Mask of the parameter's elements without state, looked for once."""
        if name not in self.masks:
            self.masks[name] = rule.stateless()
        return self.masks[name]

    def squares(self, name: str) -> Tensor | None:
        """``sum_i g_i^2`` elementwise, found once."""
        if name not in self._squares:
            found = self._ask(name) if self._ask else None
            self._squares[name] = None if found is None else found.to(self.gradient[name].dtype)
        return self._squares[name]

    def mask(self, name: str, rule: Update) -> Tensor | None:
        """Which elements have an averaged slope; None: none has."""
        g, mask = self.gradient[name], self.stateless(name, rule)
        if (mask is None and not rule.warming_up) or self._ask is None:
            return None
        if mask is not None and not rule.rough_everywhere:
            mask = mask & (g != 0)
        if not rule.warming_up and (mask is None or not bool(mask.any())):
            return None
        q = self.squares(name)
        if q is not None and rule.warming_up:
            mask = rule.noise_dominated(q) & (g != 0)
        return mask if q is not None and mask is not None and bool(mask.any()) else None

    def smoothed(
        self,
        V: Tensor,
        rule: Update,
        name: str,
        cotangent: Tensor,
        ends: tuple[float, float],
        missing: Missing,
    ) -> Tensor:
        """V, of secants over the segment `ends` of the step, with averaged slopes where they are
        due; what its sum lacks by them is noted.
        """
        mask = self.mask(name, rule)
        if mask is None:
            return V
        key, g, q = (name, *ends), self.gradient[name], self._squares[name]
        assert q is not None, "a mask is made from squares"
        if key not in self._slopes:  # the same for every target
            part = rule.map_tensors(lambda tensor: tensor.expand_as(g)[mask])
            # hundreds of passes: a piece at a time
            average = partial(coalition_slope, n=self.n, lo=ends[0], hi=ends[1])
            self._slopes[key] = blockwise(average, part, g[mask], q[mask])
        averaged = self._slopes[key] * cotangent[mask]
        missing.note(name, mask, g[mask] * (V[mask] - averaged))
        V = V.clone()
        V[mask] = averaged
        return V

    def complete(self, V: dict[str, Tensor], missing: Missing) -> dict[str, Tensor]:
        """V with the missing sum added along what the samples agree about."""
        if missing.total is None:
            return V
        rough = {name: self._masked_squares(name, mask) for name, mask in missing.where.items()}
        device = missing.total.device
        norms = [torch.linalg.vector_norm(q, dtype=torch.float64) for q in rough.values()]
        sizes = [q.sum(dtype=torch.float64) for q in rough.values()]
        squared, size = (_added(parts, device) for parts in ([n * n for n in norms], sizes))
        least = torch.where(size > 0, _LEAST * squared / size, 0.0)
        here = {name: self.gradient[name][mask] for name, mask in missing.where.items()}
        along = {name: self.common(here[name], q, least.to(q)) for name, q in rough.items()}
        reach = _added(
            [(w * here[name]).sum(dtype=torch.float64) for name, w in along.items()], device
        )
        factor = torch.where(reach > 0, missing.total / reach, 0.0)
        for name, w in along.items():
            V[name][missing.where[name]] += factor.to(w) * w
        return V

    def _masked_squares(self, name: str, mask: Tensor) -> Tensor:
        q = self._squares[name]
        assert q is not None, "a mask is made from squares"
        return q[mask]

    def common(self, g: Tensor, q: Tensor, least: Tensor) -> Tensor:
        """``G r / (q (1 - r) + least)``, 0 where no sample has a gradient."""
        r = agreement(g, q, self.n)
        own = q * (1.0 - r) + least
        return torch.where(own > 0, g * r / torch.where(own > 0, own, 1.0), 0.0)


def _added(parts: Iterable[Tensor], device: torch.device) -> Tensor:
    return torch.stack([part.to(device) for part in parts]).sum()
