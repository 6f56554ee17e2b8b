"""The two ways from a backward pass to dot products: at once, for directions known before it, or from a tape, for those known after."""

from collections.abc import Mapping

import torch
from torch import Tensor

from inrun.ghost.origin import Origin
from inrun.rules import Factor
from inrun.rules.factors import wide


class Dots:
    """Accumulates ``<g_i, V_k>`` per parameter while the backward runs; nothing of the batch is kept.

    Args:
        directions: name -> V [k, *shape].
        n: samples of the micro-batch.
    """

    def __init__(self, directions: Mapping[str, Tensor], n: int):
        self.directions, self.n = directions, n
        self.by_parameter: dict[str, Tensor] = {}
        self.seen: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def sink(self, operation: str, origin: Origin, factor: Factor) -> None:
        self.seen.update(origin.roots)
        self.dtypes.update(_float_dtypes(factor))
        for root in origin.roots:
            if root in self.directions:
                add_dots(self.by_parameter, root, factor.dots(wide(origin.push(root, self.directions[root]))))

    def non_finite(self) -> list[bool]:
        """Which samples have NaN or infinity in a dot product."""
        bad = torch.zeros(self.n, dtype=torch.bool)
        for dots in self.by_parameter.values():
            bad |= ~torch.isfinite(dots).all(0).cpu()
        return bad.tolist()


class Tape:
    """Keeps the factors of a micro-batch (layer inputs and output gradients) until the directions are known."""

    def __init__(self, n: int):
        self.n = n
        self.entries: list[tuple[Origin, Factor]] = []
        self.seen: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def sink(self, operation: str, origin: Origin, factor: Factor) -> None:
        self.seen.update(origin.roots)
        self.dtypes.update(_float_dtypes(factor))
        self.entries.append((origin, factor))

    def dots(self, directions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``<g_i, V_k>``: name -> V [k, *shape]  to  name -> [k, n]."""
        totals: dict[str, Tensor] = {}
        for origin, factor in self.entries:
            for root in origin.roots:
                if root in directions:
                    add_dots(totals, root, factor.dots(wide(origin.push(root, directions[root]))))
        return totals

    def dense(self, root: str, i: int) -> Tensor | None:
        """Sample i's gradient with respect to one parameter, all its uses together; None if the batch did not use it."""
        gradients = [origin.pull(root, factor.dense(i)) for origin, factor in self.entries if root in origin.roots]
        return sum(gradients) if gradients else None

    def squares(self, root: str) -> Tensor | None:
        """``sum_i g_i^2`` elementwise, with one sample's gradient in memory at a time; None if the batch did not use the parameter."""
        total = None
        for i in range(self.n):
            g = self.dense(root, i)
            if g is None:
                return None
            total = g * g if total is None else total.addcmul_(g, g)
        return total

    def non_finite(self) -> list[bool]:
        """Which samples have NaN or infinity in what came back to one of their operations."""
        bad = torch.zeros(self.n, dtype=torch.bool)
        for _, factor in self.entries:
            for tensor in factor.tensors():
                if tensor.is_floating_point():
                    bad |= ~torch.isfinite(tensor).reshape(self.n, -1).all(1).cpu()
        return bad.tolist()

    def nbytes(self) -> int:
        """Memory that the tape keeps alive, counting a storage once."""
        storages = {}
        for _, factor in self.entries:
            for tensor in factor.tensors():
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())


def _float_dtypes(factor: Factor) -> set[torch.dtype]:
    return {tensor.dtype for tensor in factor.tensors() if tensor.is_floating_point()}


def add_dots(totals: dict[str, Tensor], root: str, dots: Tensor) -> None:
    """totals[root] += dots; float64 from here on, the sums over parameters and steps are long."""
    dots = dots.to(torch.float64)
    totals[root] = dots if root not in totals else totals[root] + dots
