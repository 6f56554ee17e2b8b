"""The two ways from a backward pass to dot products: at once, for directions known before it, or
from a tape, for those known after.
"""

import functools
import operator
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from inrun.ghost.buffers import GradientBuffers
from inrun.ghost.met import own_functions
from inrun.ghost.origin import dots_of
from inrun.rules import Factor, Origin, Sink

#: (operation, parameters, form of the factor)
Use = tuple[str, tuple[str, ...], str]


class Recorder(Sink):
    """Gets every use's factor in the backward; the base of the two ways to dots.

    Args:
        n: samples of the micro-batch.
        fused: operations may take their fused form (`inrun.rules.fused`), which sums the weight
            gradient in another order.
    """

    def __init__(self, n: int, fused: bool):
        self.n, self.fused = n, fused
        self.seen: set[str] = set()
        #: those in which parts of gradients were formed
        self.dtypes: set[torch.dtype] = set()
        #: what was done with which parameters, in what form: new ones are audited
        self.uses: set[Use] = set()
        #: why no tensor of the batch can have the samples' rows, None where one can
        self.unfound: str | None = None
        #: a backward runs that is not the training's: nothing of it belongs to a sample
        self.paused = False
        #: autograd functions of one's own that a backward passed through, as long as it is looked
        self.looking = False
        self.met: set[str] = set()
        #: what was added to the loss without data, with its gradients [1, *shape]
        self.penalties: list[tuple[Origin, Factor]] = []

    def look_at(self, given: Tensor | Iterable[Tensor]) -> None:
        """A backward of these is about to run."""
        if self.looking and not self.paused:
            self.met |= own_functions(given)

    def sink(self, operation: str, origin: Origin, factor: Factor) -> None:
        if self.paused:
            return
        self.seen.update(origin.roots)
        self.uses.add((operation, origin.roots, type(factor).__name__))
        self.dtypes.add(origin.dtype)
        self.dtypes.update(
            tensor.dtype for tensor in factor.tensors() if tensor.is_floating_point()
        )
        self.take(origin, factor)

    def sink_penalty(self, operation: str, origin: Origin, factor: Factor) -> None:
        """Take a function of weights alone that was added to the loss: it belongs to no sample."""
        if not self.paused:
            self.seen.update(origin.roots)
            self.penalties.append((origin, factor))

    def take(self, origin: Origin, factor: Factor) -> None:
        """What this recorder does with the factor of one use."""
        raise NotImplementedError

    def directions_for(self, origin: Origin) -> Tensor | None:
        return None

    def take_dots(self, origin: Origin, dots: Tensor, dtype: torch.dtype) -> None:
        raise NotImplementedError("only a recorder with directions takes dots")

    def buffer(self, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        return None


class StreamingDots(Recorder):
    """Accumulates ``<g_i, V_k>`` per parameter while the backward runs; nothing of the batch is
    kept.

    Args:
        directions: name -> V [k, *shape].
        n: samples of the micro-batch.
    """

    def __init__(self, directions: Mapping[str, Tensor], n: int, fused: bool = False):
        super().__init__(n, fused)
        self.directions = directions
        self.by_parameter: dict[str, Tensor] = {}

    def take(self, origin: Origin, factor: Factor) -> None:
        for root in origin.roots:
            if root in self.directions:
                V = self.directions[root]
                add_dots(self.by_parameter, root, dots_of(origin, root, factor, V, self.n))

    def directions_for(self, origin: Origin) -> Tensor | None:
        (root,) = origin.roots
        return self.directions.get(root) if self.fused else None

    def take_dots(self, origin: Origin, dots: Tensor, dtype: torch.dtype) -> None:
        if self.paused:
            return
        (root,) = origin.roots
        self.seen.add(root)
        self.uses.add(("fused", origin.roots, ""))
        self.dtypes.update((dtype, origin.dtype))
        add_dots(self.by_parameter, root, dots)

    def dots(self, directions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """name -> [k, n]: what was accumulated for the directions it was made with."""
        return self.by_parameter

    def non_finite(self) -> list[bool]:
        """Which samples have NaN or infinity in a dot product."""
        return non_finite_samples(self.by_parameter, self.n)


class Tape(Recorder):
    """Keeps the factors of a micro-batch until the directions are known.

    With `fused`, a linear layer's per-sample weight gradients are kept as long as `memory` lasts:
    they are by-products of its weight gradient, and dots with any direction are then one streaming
    pass. Otherwise layer inputs and output gradients are kept, and dots cost one more product.

    Args:
        memory: where kept gradients live.
    """

    def __init__(self, n: int, fused: bool = False, memory: GradientBuffers | None = None):
        super().__init__(n, fused)
        self.memory = memory if memory is not None else GradientBuffers()
        self.entries: list[tuple[Origin, Factor]] = []

    def take(self, origin: Origin, factor: Factor) -> None:
        self.entries.append((origin, factor))

    def buffer(self, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        taken = self.fused and not self.paused
        return self.memory.take((self.n, *shape), like) if taken else None

    def dots(self, directions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``<g_i, V_k>``: name -> V [k, *shape]  to  name -> [k, n]."""
        totals: dict[str, Tensor] = {}
        for origin, factor in self.entries:
            for root in origin.roots:
                if root in directions:
                    V = directions[root]
                    add_dots(totals, root, dots_of(origin, root, factor, V, self.n))
        return totals

    def dense(self, root: str, i: int) -> Tensor | None:
        """Sample i's gradient with respect to one parameter, all its uses together; None if the
        batch did not use it.
        """
        gradients = [
            origin.vjp(root, factor.dense(i))
            for origin, factor in self.entries
            if root in origin.roots
        ]
        return functools.reduce(operator.add, gradients) if gradients else None

    def squares(self, root: str) -> Tensor | None:
        """``sum_i g_i^2`` elementwise, with one sample's gradient in memory at a time; None if the
        batch did not use the parameter.
        """
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
            bad |= ~factor.finite(self.n).cpu()
        return bad.tolist()

    def nbytes(self) -> int:
        """Memory that the tape keeps alive, counting a storage once."""
        storages = {}
        for _, factor in self.entries:
            for tensor in factor.tensors():
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())


def penalty_dots(
    penalties: list[tuple[Origin, Factor]], directions: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``<g, V_k>`` of the penalties' gradients g: name -> V [k, *shape]  to  name -> [k, 1]."""
    totals: dict[str, Tensor] = {}
    for origin, factor in penalties:
        for root in origin.roots:
            if root in directions:
                add_dots(totals, root, dots_of(origin, root, factor, directions[root], 1))
    return totals


def non_finite_samples(by_parameter: Mapping[str, Tensor], n: int) -> list[bool]:
    """Which of n samples have NaN or infinity in a dot product, of name -> [k, n]."""
    bad = torch.zeros(n, dtype=torch.bool)
    for dots in by_parameter.values():
        bad |= ~torch.isfinite(dots).all(0).cpu()
    return bad.tolist()


def add_dots(totals: dict[str, Tensor], root: str, dots: Tensor) -> None:
    """totals[root] += dots; float64 from here on, the sums over parameters and steps are long."""
    dots = dots.to(torch.float64)
    totals[root] = dots if root not in totals else totals[root] + dots
