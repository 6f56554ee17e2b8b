"""The two ways from a backward pass to dot products: at once, for directions known before it, or
from a tape, for those known after.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

import inrun_kernels
from inrun.ghost.fused import HeadFactor
from inrun.ghost.origin import Origin
from inrun.rules import Dense, Factor, Outer
from inrun.rules.factors import Scaled, wide
from inrun_kernels.head import CROSS_ENTROPY_SUM


class Recorder:
    """Gets every use's factor in the backward. `fused`: operations may hand their whole weight
    gradient over (inrun.ghost.fused).
    """

    def __init__(self, n: int, fused: bool):
        self.n, self.fused = n, fused
        self.seen: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def sink(self, operation: str, origin: Origin, factor: Factor) -> None:
        """One use: where the argument came from, and its per-sample gradients."""
        self.seen.update(origin.roots)
        self.dtypes.update(
            tensor.dtype for tensor in factor.tensors() if tensor.is_floating_point()
        )
        self.take(origin, factor)

    def take(self, origin: Origin, factor: Factor) -> None:
        raise NotImplementedError

    def outer(self, origin: Origin, a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """A linear layer's use, a [n,t,i], b [n,t,o]; returns the weight gradient if it came out on
        the way.
        """
        raise NotImplementedError

    def head(self, origin: Origin, x: Tensor, w: Tensor, targets: Tensor, ignore_index: int):
        """(loss, dx, wgrad, part) of the head; `part` comes back to `head_part` with the loss's
        gradient.
        """
        raise NotImplementedError

    def head_part(self, origin: Origin, part, gradient: Tensor) -> None:
        raise NotImplementedError


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
                add_dots(
                    self.by_parameter,
                    root,
                    factor.dots(wide(origin.jvp(root, self.directions[root]))),
                )

    def outer(self, origin: Origin, a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        (root,) = origin.roots
        self.seen.add(root)
        self.dtypes.add(b.dtype)
        if root not in self.directions:
            return None
        wgrad, dots = inrun_kernels.wgrad_dots(a, b, self.directions[root])
        add_dots(self.by_parameter, root, dots)
        return wgrad

    def head(self, origin: Origin, x: Tensor, w: Tensor, targets: Tensor, ignore_index: int):
        (root,) = origin.roots
        if root not in self.directions or not self.fused:
            return *CROSS_ENTROPY_SUM(x, w, targets, ignore_index), (x, w, targets, ignore_index)
        ones = torch.ones_like(
            targets, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32
        )
        losses, dx, wgrad, dots = inrun_kernels.linear_cross_entropy_dots(
            x, w, targets, self.directions[root], weights=ones, ignore_index=ignore_index
        )
        return losses.sum(), dx, wgrad.to(w.dtype), dots

    def head_part(self, origin: Origin, part, gradient: Tensor) -> None:
        if isinstance(part, Tensor):
            (root,) = origin.roots
            self.seen.add(root)
            self.dtypes.add(part.dtype)
            add_dots(self.by_parameter, root, gradient * part)
        else:
            self.sink("head", origin, HeadFactor(*part, gradient))

    def dots(self, directions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """name -> [k, n]: what was accumulated for the directions it was made with."""
        return self.by_parameter

    def non_finite(self) -> list[bool]:
        """Which samples have NaN or infinity in a dot product."""
        return non_finite_samples(self.by_parameter, self.n)


class GradientBuffers:
    """Buffers for per-sample weight gradients, up to a budget, used again step after step: fresh
    memory of that size costs more than what is written to it.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int = 0):
        self.budget = budget
        self._used = 0
        self._idle: dict[tuple, list[Tensor]] = {}
        self._busy: dict[tuple, list[Tensor]] = {}

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        """An uninitialised buffer, or None if the budget is spent."""
        key = (shape, like.dtype, like.device)
        if self._idle.get(key):
            buffer = self._idle[key].pop()
        else:
            size = math.prod(shape) * like.dtype.itemsize
            if self._used + size > self.budget:
                return None
            self._used += size
            buffer = like.new_empty(shape)
        self._busy.setdefault(key, []).append(buffer)
        return buffer

    def release(self) -> None:
        """The step is over: all buffers may be used again; those of shapes that were not asked for
        are given up.
        """
        self._idle, self._busy = self._busy, {}
        self._used = sum(buffer.nbytes for buffers in self._idle.values() for buffer in buffers)


class Tape(Recorder):
    """Keeps the factors of a micro-batch until the directions are known.

    With `fused`, a linear layer's per-sample weight gradients are kept as long as `memory` lasts:
    they are by-products of its weight gradient, and dots with any direction are then one streaming
    pass. Otherwise layer inputs and output gradients are kept, and dots cost one more product.

    Args:
        memory: where kept gradients live.
    """

    def __init__(self, n: int, fused: bool = False, memory: "GradientBuffers | None" = None):
        super().__init__(n, fused)
        self.memory = memory if memory is not None else GradientBuffers()
        self.entries: list[tuple[Origin, Factor]] = []

    def take(self, origin: Origin, factor: Factor) -> None:
        self.entries.append((origin, factor))

    def outer(self, origin: Origin, a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        g = self.memory.take((self.n, *shape), b) if self.fused else None
        if g is None:
            self.sink("linear", origin, Outer(a, b, shape))
            return None
        torch.bmm(b.mT, a, out=g)
        self.sink("linear", origin, Dense(g))
        return inrun_kernels.sample_sum(g)

    def head(self, origin: Origin, x: Tensor, w: Tensor, targets: Tensor, ignore_index: int):
        g = self.memory.take((self.n, *w.shape), x) if self.fused else None
        if g is None:
            return *CROSS_ENTROPY_SUM(x, w, targets, ignore_index), (x, w, targets, ignore_index)
        loss, dx, g = inrun_kernels.cross_entropy_sum_per_sample(
            x, w, targets, ignore_index=ignore_index, out=g
        )
        return loss, dx, inrun_kernels.sample_sum(g).to(w.dtype), g

    def head_part(self, origin: Origin, part, gradient: Tensor) -> None:
        self.sink(
            "head",
            origin,
            Scaled(Dense(part), gradient)
            if isinstance(part, Tensor)
            else HeadFactor(*part, gradient),
        )

    def dots(self, directions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``<g_i, V_k>``: name -> V [k, *shape]  to  name -> [k, n]."""
        totals: dict[str, Tensor] = {}
        for origin, factor in self.entries:
            for root in origin.roots:
                if root in directions:
                    add_dots(totals, root, factor.dots(wide(origin.jvp(root, directions[root]))))
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
        return sum(gradients) if gradients else None

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
